"""Runs the commands behind the Makefile as people do."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.site import ROOT


def freehold(*words: str, stdin: str = "") -> str:
    """Return what a command of the Makefile printed; it must succeed."""
    inventory = os.environ.get("FREEHOLD_INVENTORY", "lab")
    command = [sys.executable, "-m", "freehold", words[0], "--inventory", inventory, *words[1:]]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
