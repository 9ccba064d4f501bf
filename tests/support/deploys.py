"""Runs ansible/deploy.yml as an operator does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from freehold import playbooks
from tests.support.site import ROOT

# The controller is no part of the system: here it shares the hosts' cores.
NICE = ("nice", "-n", "10")


def run(services: str, image: str, archive: Path, **variables: object) -> tuple[int, str]:
    """Deploy an image from an archive to services, and return the playbook's status and all that it printed."""
    inventory = os.environ.get("FREEHOLD_INVENTORY", "lab")
    given = json.dumps({"service": services, "image": image, "archive": str(archive), **variables})
    printed = subprocess.run(
        [*NICE, "ansible-playbook", "-i", f"inventories/{inventory}", "-e", given, "ansible/deploy.yml"],
        capture_output=True,
        text=True,
        check=False,
        env=playbooks.environment(),
        cwd=ROOT,
    )
    return printed.returncode, printed.stdout + printed.stderr
