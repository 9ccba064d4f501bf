"""Runs ansible/deploy.yml, ansible/lab.yml, ansible/scale.yml and ansible/site.yml as an operator does."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from freehold import playbooks
from freehold.playbooks import HostRecap
from tests.support.site import ROOT


def run(services: str, image: str, archive: Path | None = None, /, **variables: object) -> tuple[int, str]:
    """Deploy an image to services, from an archive if there is one; return the playbook's status and all that it printed."""
    given = {"service": services, "image": image, **variables} | ({"archive": str(archive)} if archive else {})
    printed = _play("deploy", ("-e", json.dumps(given)))
    return printed.returncode, printed.stdout + printed.stderr


def scale(**variables: object) -> tuple[int, str]:
    """Run scale.yml; return the playbook's status and all that it printed."""
    printed = _play("scale", ("-e", json.dumps(variables)))
    return printed.returncode, printed.stdout + printed.stderr


def make_hosts(*names: str) -> None:
    """Have the provider make hosts of the inventory; raises AssertionError with what was printed."""
    printed = _play("lab", ("--limit", ",".join(names)))
    assert printed.returncode == 0, printed.stdout + printed.stderr


def converge(*arguments: str) -> tuple[dict[str, HostRecap], float, str]:
    """Return each host's recap of site.yml, the seconds that it took, and all that it printed."""
    start = time.monotonic()
    printed = _play("site", arguments)
    found = (playbooks.RECAP.match(line) for line in printed.stdout.splitlines())
    recap = {match[1]: HostRecap(*(int(number) for number in match.groups()[1:])) for match in found if match}
    return recap, time.monotonic() - start, printed.stdout + printed.stderr


def _play(name: str, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    inventory = os.environ.get("FREEHOLD_INVENTORY", "lab")
    command = ["ansible-playbook", "-i", f"inventories/{inventory}", *arguments, f"ansible/{name}.yml"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=playbooks.environment(), cwd=ROOT)
