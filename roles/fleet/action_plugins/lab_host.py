"""Have or remove one host of the lab on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from freehold.lab import HostSpec, Lab, LabError, Volume, lab_name

DOCUMENTATION = r"""
module: lab_host
short_description: Have or remove one host of the lab on this machine
description: Runs on the controller, once a host; many hosts come up in parallel by Ansible's forks.
options:
  state:
    description: >-
      C(present) has the host running and reachable over SSH, C(absent) removes it, C(image) makes an image of it, which
      ends the host.
    choices: [present, absent, image]
    default: present
  name:
    description: The host's name.
    type: str
    required: true
  address:
    description: The host's address in the lab's network.
    type: str
  tier:
    description: The host's tier, which chooses its image and is kept as a label.
    type: str
  zone:
    description: The host's zone, kept as a label.
    type: str
  memory_mb:
    description: The host's memory in MiB.
    type: int
    default: 1024
  cpus:
    description: How many cores of CPU time a second the host may use.
    type: float
    default: 1.0
  image:
    description: What to start from; empty is the tier's golden image, or the base image where there is none. With C(state=image), what to make.
    type: str
    default: ""
  volumes:
    description: Disks that outlive the host, each C(name), C(size_mb) and C(paths).
    type: list
    elements: dict
    default: []
  keep_volumes:
    description: Keep the volumes of a host that is removed.
    type: bool
    default: false
"""


class ActionModule(ActionBase):
    """One call of the lab provider."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return whether anything had to be done."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "state": {"choices": ["present", "absent", "image"], "default": "present"},
                "name": {"type": "str", "required": True},
                "address": {"type": "str"},
                "tier": {"type": "str", "default": ""},
                "zone": {"type": "str", "default": ""},
                "memory_mb": {"type": "int", "default": 1024},
                "cpus": {"type": "float", "default": 1.0},
                "image": {"type": "str", "default": ""},
                "volumes": {
                    "type": "list",
                    "elements": "dict",
                    "default": [],
                    "options": {
                        "name": {"type": "str", "required": True},
                        "size_mb": {"type": "int", "required": True},
                        "paths": {"type": "list", "elements": "str", "required": True},
                    },
                },
                "keep_volumes": {"type": "bool", "default": False},
            },
            required_if=[("state", "present", ["address"]), ("state", "image", ["image"])],
        )
        try:
            result["changed"] = self._apply(arguments)
        except LabError as error:
            raise AnsibleActionFail(str(error)) from error
        return result

    def _apply(self, arguments: dict[str, Any]) -> bool:
        lab = Lab(lab_name())
        dry = bool(self._task.check_mode)
        name = arguments["name"]
        if arguments["state"] == "absent":
            return lab.down(name, keep_volumes=arguments["keep_volumes"], dry=dry)
        if arguments["state"] == "image":
            if not dry:
                lab.commit(name, arguments["tier"], arguments["image"])
            return True
        spec = HostSpec(
            name=name,
            address=arguments["address"],
            tier=arguments["tier"],
            zone=arguments["zone"],
            memory_mb=arguments["memory_mb"],
            cpus=arguments["cpus"],
            image=arguments["image"],
            volumes=tuple(Volume(v["name"], v["size_mb"], tuple(v["paths"])) for v in arguments["volumes"]),
        )
        return lab.up(spec, dry=dry)
