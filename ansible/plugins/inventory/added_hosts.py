"""Hosts that ansible/scale.yml took in, from the state folder of an inventory of servers that exist."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.inventory import BaseInventoryPlugin

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from freehold.fleet import Fleet

DOCUMENTATION = r"""
name: added_hosts
short_description: Hosts that scaling took in
description:
  - Adds the hosts that ansible/scale.yml made or took in to their tier and to the group C(fleet_added). Those that are not configured yet
    are in C(fleet_arriving) as well, those that are on their way out in C(fleet_leaving) in place of their tier.
options:
  plugin:
    description: Always C(added_hosts).
    required: true
    choices: [added_hosts]
  folder:
    description: >-
      The state folder, C(topology_state_dir) of the inventory, from this file's folder; that of the inventory's name in C(.state) of the
      project where it is not given.
    type: str
    default: ""
"""


class InventoryModule(BaseInventoryPlugin):
    """Add what scaling added; the other hosts stand in hosts.yml beside it."""

    NAME = "added_hosts"

    def verify_file(self, path: str) -> bool:
        """Return whether the file may be one of this plugin's."""
        return bool(super().verify_file(path)) and path.endswith((".yml", ".yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:  # noqa: ANN401
        """Read which hosts were added."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        here = Path(path).resolve().parent
        folder = self.get_option("folder") or f"../../.state/{here.name}"
        Fleet((here / folder).resolve()).into(self.inventory)
