"""Let one playbook at a time change an environment: another one waits, and says for whom."""

from __future__ import annotations

import fcntl
import json
import os
import time
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ansible.template import Templar

from ansible import context
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: one_at_a_time
type: aggregate
short_description: Let one playbook at a time change an environment
description:
  - Before its first play, a playbook that changes hosts takes the lock C(locks/playbook) of the inventory's state folder, and keeps it to its
    end, however it ends. Another of the same controller waits until then, and reads the inventory again.
  - Nothing is locked with C(--check), and where the inventory names no state folder.
requirements: []
"""

CHANGING = {"deploy.yml", "scale.yml", "site.yml"}


class CallbackModule(CallbackBase):
    """A lock that lasts as long as the process."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "one_at_a_time"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Hold nothing."""
        super().__init__()
        self._name = ""
        self._file: TextIOWrapper | None = None

    def v2_playbook_on_start(self, playbook: Any) -> None:  # noqa: ANN401
        """Note which playbook it is."""
        self._name = Path(playbook._file_name).name

    def v2_playbook_on_play_start(self, play: Any) -> None:  # noqa: ANN401
        """Take the lock before the first play."""
        if self._file is not None or self._name not in CHANGING or context.CLIARGS.get("check"):
            return
        manager = play.get_variable_manager()
        hosts = manager._inventory.get_hosts()
        variables = manager.get_vars(play=play, host=hosts[0]) if hosts else {}
        if "topology_state_dir" in variables:
            folder = Templar(play.get_loader(), variables).template(variables["topology_state_dir"])
            if self._take(Path(str(folder)) / "locks" / "playbook"):
                # The other one may have added hosts, or removed some.
                manager._inventory.refresh_inventory()

    def _take(self, path: Path) -> bool:
        """Have the lock, and return whether another one had it."""
        waited = False
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lock of lockf is its process's alone: what Ansible starts and leaves behind does not keep it.
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            self._display.display(f"Waiting for {_holder(self._file.read())}", color="yellow")
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            waited = True
        self._file.truncate(0)
        self._file.write(json.dumps({"playbook": self._name, "pid": os.getpid(), "since": time.strftime("%H:%M:%S")}))
        self._file.flush()
        return waited


def _holder(text: str) -> str:
    """Return in words who has the lock."""
    try:
        holder = json.loads(text)
        return f"{holder['playbook']}, process {holder['pid']}, which changes these hosts since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "a playbook that changes these hosts"
