"""The lab's side of its inventory: what was chosen or generated when the lab was made, from `.state/<lab>/`.

Other inventories of this machine, Vagrant's for one, keep theirs in a folder of that kind, too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.inventory import BaseInventoryPlugin

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from freehold.fleet import Fleet
from freehold.lab import Lab, control_path, lab_name

DOCUMENTATION = r"""
name: lab_state
short_description: Variables of the lab from its state folder
description:
  - Gives all hosts the prefix of their addresses, the SSH key and pinned host keys, the state folder and the secrets.
  - Adds the hosts that ansible/scale.yml made or took in, as added_hosts does.
  - A lab that was never made gets a prefix for documentation, so that its inventory can still be read and checked.
options:
  plugin:
    description: Always C(lab_state).
    required: true
    choices: [lab_state]
  lab:
    description: The state folder's name; that of FREEHOLD_LAB, or of this checkout, where it is not given.
    type: str
    default: ""
"""

# RFC 5737: addresses that nobody has.
DOCUMENTATION_PREFIX = "192.0.2"


class InventoryModule(BaseInventoryPlugin):
    """Set variables of the group `all`, and add what scaling added; the other hosts stand in hosts.yml beside it."""

    NAME = "lab_state"

    def verify_file(self, path: str) -> bool:
        """Return whether the file may be one of this plugin's."""
        return bool(super().verify_file(path)) and path.endswith((".yml", ".yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:  # noqa: ANN401
        """Read the state folder that is named, or that of the lab of FREEHOLD_LAB or of this checkout."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        lab = Lab(self.get_option("lab") or lab_name())
        variables: dict[str, Any] = {
            "lab_name": lab.name,
            "lab_prefix": lab.description().get("prefix", DOCUMENTATION_PREFIX),
            "topology_state_dir": str(lab.state),
            "ansible_ssh_private_key_file": str(lab.key),
            "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile='{lab.known_hosts}' -o StrictHostKeyChecking=yes",
            # Ansible fills in its own %(...)s, ssh the rest.
            "ansible_control_path": control_path(lab.name).replace("%", "%%"),
        }
        secrets = lab.state / "secrets.yml"
        if secrets.exists():
            variables |= loader.load_from_file(str(secrets), trusted_as_template=False) or {}
        images = lab.state / "images.json"
        if images.exists():
            variables["topology_service_images"] = loader.load_from_file(str(images), trusted_as_template=False)
        for name, value in variables.items():
            self.inventory.set_variable("all", name, value)
        Fleet(lab.state).into(self.inventory)
