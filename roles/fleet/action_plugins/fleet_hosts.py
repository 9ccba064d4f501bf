"""Record how many hosts a tier is to have, that one that was to come or go has done so, or that one is lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from freehold.fleet import ARRIVING, LEAVING, Fleet, FleetError, FleetHost, Place

DOCUMENTATION = r"""
module: fleet_hosts
short_description: Record how many hosts a tier is to have
description:
  - Changes C(hosts.json) of the inventory's state folder, on the controller, and no host.
  - Read the inventory again afterwards.
options:
  state:
    description: >-
      C(resized) records C(count) hosts, some as arriving or leaving; C(settled) that the host C(name) has arrived or left; C(lost) that it
      does not answer and is not to be taken in again before others.
    choices: [resized, settled, lost]
    required: true
  folder:
    description: The state folder.
    type: path
    required: true
  tier:
    description: Whose hosts.
    type: str
    required: true
  name:
    description: The host that has arrived or left, or is lost.
    type: str
  count:
    description: How many hosts the tier is to have, the declared ones among them.
    type: int
  declared:
    description: The tier's hosts in the inventory, each with its zone; those that scaling added may be among them.
    type: dict
  zones:
    description: Zones in which the provider makes hosts; empty where it makes none.
    type: list
    elements: str
    default: []
  network:
    description: The tier's network, for addresses of hosts that the provider makes.
    type: str
    default: ""
  taken:
    description: Names and addresses that are in use.
    type: list
    elements: str
    default: []
  standby:
    description: Hosts that wait to be taken in, each C(name), C(zone) and C(address).
    type: list
    elements: dict
    default: []
"""


class ActionModule(ActionBase):
    """One change of the record."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return C(arriving) and C(leaving), names, and whether the record changed."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "state": {"choices": ["resized", "settled", "lost"], "required": True},
                "folder": {"type": "path", "required": True},
                "tier": {"type": "str", "required": True},
                "name": {"type": "str"},
                "count": {"type": "int"},
                "declared": {"type": "dict"},
                "zones": {"type": "list", "elements": "str", "default": []},
                "network": {"type": "str", "default": ""},
                "taken": {"type": "list", "elements": "str", "default": []},
                "standby": {"type": "list", "elements": "dict", "default": []},
            },
            required_if=[
                ("state", "resized", ["count", "declared"]),
                ("state", "settled", ["name"]),
                ("state", "lost", ["name"]),
            ],
        )
        fleet, dry = Fleet(Path(arguments["folder"])), bool(self._task.check_mode)
        if arguments["state"] == "settled":
            result["changed"] = not dry and fleet.settle(arguments["tier"], arguments["name"])
            return result
        if arguments["state"] == "lost":
            result["changed"] = not dry and fleet.lose(arguments["tier"], [arguments["name"]])
            return result
        place = Place(
            arguments["tier"],
            arguments["declared"],
            zones=arguments["zones"],
            network=arguments["network"],
            taken=arguments["taken"],
            standby=[FleetHost(**host) for host in arguments["standby"]],
        )
        try:
            before, after = fleet.resize(arguments["count"], place, dry=dry)
        except FleetError as error:
            raise AnsibleActionFail(str(error)) from error
        return result | {
            "changed": before != after,
            "arriving": [host.name for host in after if host.state == ARRIVING],
            "leaving": [host.name for host in after if host.state == LEAVING],
        }
