"""Have the lab's state folder, SSH key, network and base image on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from freehold.lab import Lab, LabError, lab_name

DOCUMENTATION = r"""
module: lab_network
short_description: Have what all hosts of the lab share
description: Makes the state folder, the SSH key, a network whose addresses nothing else uses, and the base image.
options: {}
"""


class ActionModule(ActionBase):
    """One call of the lab provider."""

    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset[str]()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return whether anything had to be made."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            result["changed"] = Lab(lab_name()).prepare(dry=bool(self._task.check_mode))
        except LabError as error:
            raise AnsibleActionFail(str(error)) from error
        return result
