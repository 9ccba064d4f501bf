#!/usr/bin/python
"""Restart a host's Valkey instances so that no shard is ever without a primary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.valkey_spread import Connection, Login, Move, ValkeyError, View, make, synced, wait_for

DOCUMENTATION = r"""
module: valkey_roll
short_description: Restart this host's Valkey instances one after the other
description:
  - Waits until the instance's cluster is healthy, gives a primary's shard to its replica, restarts the instance, and waits
    until it follows its primary again and the cluster is healthy. Stops at the first that does not come back.
options:
  instances:
    description: Instances of this host, each with C(unit), C(address) and C(port).
    type: list
    elements: dict
    required: true
  zones:
    description: Zone of each host's address.
    type: dict
    required: true
  user:
    description: User that may do everything.
    type: str
    required: true
  password:
    description: Its password.
    type: str
    required: true
  ca_file:
    description: Certificate of the CA that signed the instances' certificates.
    type: path
    required: true
  timeout:
    description: Seconds that each step may take.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Restart this host's instances one after the other, each as a replica
  valkey_roll:
    instances: "{{ __valkey_runtime }}"
    zones: {10.0.0.1: a, 10.0.0.2: b}
    user: admin
    password: "{{ valkey_admin_password }}"
    ca_file: "{{ topology_ca_file }}"
"""


class Roll:
    """The restart of one instance."""

    def __init__(self, module: AnsibleModule, instance: dict[str, Any], login: Login) -> None:
        self._module = module
        self._unit: str = instance["unit"]
        self._place: tuple[str, int] = (instance["address"], instance["port"])
        self._login = login

    def run(self) -> None:
        """Restart it, and return when it is back."""
        self._until(self._healthy, "its cluster is not healthy, so it is not restarted")
        self._until(self._is_replica, "its replica does not take the shard over, so it is not restarted")
        self._module.run_command(["systemctl", "restart", self._unit], check_rc=True)
        self._until(self._back, "it was restarted and is not back in its cluster")

    def _until(self, condition: Callable[[], object], otherwise: str) -> None:
        if not wait_for(condition, self._module.params["timeout"], 0.5):
            self._module.fail_json(msg=f"{self._unit}: {otherwise}.")

    def _view(self, connection: Connection) -> View:
        return View(connection.nodes(), self._module.params["zones"])

    def _healthy(self) -> bool:
        with Connection(*self._place, self._login) as connection:
            return bool(self._view(connection).healthy())

    def _is_replica(self) -> bool:
        with Connection(*self._place, self._login) as connection:
            if connection.info("replication")["role"] == "slave":
                return True
            view = self._view(connection)
            replicas = view.replicas.get(connection.text("CLUSTER", "MYID"), [])
            return any(make(Move(replica), self._login) for replica in replicas)

    def _back(self) -> bool:
        with Connection(*self._place, self._login) as connection:
            # It was a replica when it stopped. A primary now has been made one since, by what spreads them.
            back = synced(connection) or connection.info("replication")["role"] == "master"
            return bool(back and self._view(connection).healthy())


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "required": True, "no_log": True},
            "zones": {"type": "dict", "required": True},
            "user": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "ca_file": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    login = Login(module.params["user"], module.params["password"], module.params["ca_file"])
    for instance in module.params["instances"]:
        if not module.check_mode:
            try:
                Roll(module, instance, login).run()
            except ValkeyError as error:
                module.fail_json(msg=f"{instance['unit']}: {error}")
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
