#!/usr/bin/python
"""Start a RabbitMQ node so that it founds, joins or rejoins its cluster, and restart one without losing a queue."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.rabbitmq_spread import Api, ApiError

DOCUMENTATION = r"""
module: rabbitmq_node
short_description: Look at, start or restart a node of a RabbitMQ cluster
description:
  - C(looked) tells whether the node has data and runs. Where it has none and does not run, the Erlang cookie that the package
    made is removed, so that no image carries one.
  - C(started) starts the node. One without data is started only where a node of its cluster runs, which it joins, or where no
    node has data, so that all found the cluster together. A cluster that still knows its predecessor forgets it first.
  - C(restarted) waits until every queue is whole, gives leaderships away, restarts the node and waits until every queue is
    whole again.
  - C(reloaded) lets the node read its certificates again.
options:
  state:
    description: What to do.
    type: str
    choices: [looked, started, restarted, reloaded]
    required: true
  name:
    description: Name of this host; the node is C(rabbit@name).
    type: str
    required: true
  addresses:
    description: Address of each host of the cluster, by name. Needed to start and restart.
    type: dict
  may_found:
    description: Whether no node of the cluster has data.
    type: bool
    default: false
  vhosts:
    description: Virtual hosts whose queues a restart waits for.
    type: list
    elements: str
    default: []
  port:
    description: Port of the management interface.
    type: int
    default: 15671
  user:
    description: User that may see everything.
    type: str
  password:
    description: Its password.
    type: str
  ca_file:
    description: Certificate of the CA that signed the brokers' certificates.
    type: path
  timeout:
    description: Seconds that a step may take.
    type: int
    default: 180
"""

EXAMPLES = r"""
- name: Start the broker
  rabbitmq_node:
    state: started
    name: "{{ inventory_hostname }}"
    addresses: {data1: 10.0.0.1, data2: 10.0.0.2, data3: 10.0.0.3}
    user: admin
    password: "{{ rabbitmq_admin_password }}"
    ca_file: "{{ topology_ca_file }}"
"""

RETURN = r"""
data:
  description: Whether the node had data before.
  returned: always
  type: bool
running:
  description: Whether the node ran before.
  returned: always
  type: bool
actions:
  description: What was done, or in check mode would be.
  returned: always
  type: list
"""

UNIT = "rabbitmq-server"
HOME = "/var/lib/rabbitmq"
CONTROL = "/usr/sbin/rabbitmqctl"


class Node:
    """The node of this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._parameters: dict[str, Any] = module.params
        self.name = f"rabbit@{module.params['name']}"
        self.data = os.path.isdir(f"{HOME}/mnesia/{self.name}")
        # One that is just starting counts: it is already on its way.
        state = self._systemctl("show", "--property=ActiveState", "--value", UNIT)
        self.running = state in ("active", "activating", "reloading")
        self.actions: list[str] = []

    def look(self) -> None:
        """Remove the package's cookie where no node has used it yet."""
        cookie = f"{HOME}/.erlang.cookie"
        if not self.data and not self.running and os.path.exists(cookie):
            self.actions.append("removed the package's Erlang cookie")
            if not self._module.check_mode:
                os.unlink(cookie)

    def start(self) -> None:
        """Found, join or rejoin the cluster, now and on boot."""
        if self._systemctl("is-enabled", UNIT) != "enabled":
            self.actions.append("enabled")
            if not self._module.check_mode:
                self._module.run_command(["systemctl", "enable", UNIT], check_rc=True)
        if not self.running:
            if not self.data:
                self._make_way()
            self.actions.append("started")
            if not self._module.check_mode:
                code, out, err = self._module.run_command(["systemctl", "start", UNIT])
                if code:
                    self._module.fail_json(msg=f"{self.name} does not start: {self._log() or err or out}")
        if not self._module.check_mode:
            self._until(lambda: bool(self._api(self._parameters["name"]).call("GET", "auth")), "does not answer")

    def restart(self) -> None:
        """Restart the node once the others can spare it, and return when all is whole again."""
        self.actions.append("restarted")
        if self._module.check_mode:
            return
        self._until(self._whole, "is not restarted: not every queue has all its members")
        self._module.run_command(["rabbitmq-upgrade", "drain"], check_rc=True)
        code, _, err = self._module.run_command(["systemctl", "restart", UNIT])
        if code:
            self._module.fail_json(msg=f"{self.name} does not start again: {self._log() or err}")
        self._until(self._whole, "was restarted and is not back in every queue")

    def reload(self) -> None:
        """Make the node read its certificates again; established connections keep theirs."""
        self.actions.append("read its certificates again")
        if self.running and not self._module.check_mode:
            self._module.run_command([CONTROL, "eval", "ssl:clear_pem_cache()."], check_rc=True)

    def _make_way(self) -> None:
        """Have the cluster forget this node's predecessor, or refuse to found a second cluster."""
        if self._module.check_mode and not os.path.exists(self._parameters["ca_file"]):
            return  # a host that no play has been on yet
        for peer in sorted(set(self._parameters["addresses"]) - {self._parameters["name"]}):
            try:
                known = {node["name"]: node["running"] for node in self._api(peer).get("nodes")}
            except ApiError as error:
                # 401: it runs and has no users yet, so it is founding the cluster at this moment.
                if error.status == 401:
                    return
                continue
            if self.name in known:
                self.actions.append(f"rabbit@{peer} forgot the node that was here before")
                if not self._module.check_mode:
                    command = [CONTROL, "--node", f"rabbit@{peer}", "forget_cluster_node", self.name]
                    self._module.run_command(command, check_rc=True)
            return
        if not self._parameters["may_found"] and not self._module.check_mode:
            self._module.fail_json(
                msg=f"{self.name} has no data, and no broker of its cluster answers. It is not started, since it would found a "
                f"second cluster. Bring back another broker first; a first formation needs all of them in one run."
            )

    def _whole(self) -> bool:
        api = self._api(self._parameters["name"])
        nodes = {f"rabbit@{name}" for name in self._parameters["addresses"]}
        if api.running_nodes() != nodes:
            return False
        queues = [queue for vhost in self._parameters["vhosts"] for queue in api.quorum_queues(vhost)]
        return all(queue.whole and queue.members == nodes for queue in queues)

    def _api(self, host: str) -> Api:
        return Api(
            self._parameters["addresses"][host],
            self._parameters["port"],
            user=self._parameters["user"],
            password=self._parameters["password"],
            ca_file=self._parameters["ca_file"],
            timeout=5,
        )

    def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        end = time.monotonic() + self._parameters["timeout"]
        problem = ""
        while time.monotonic() < end:
            try:
                if condition():
                    return
            except ApiError as error:
                problem = f" ({error})"
            time.sleep(1)
        self._module.fail_json(msg=f"{self.name} {otherwise}{problem}.", actions=self.actions)

    def _systemctl(self, *arguments: str) -> str:
        _, out, _ = self._module.run_command(["systemctl", *arguments])
        return str(out).strip()

    def _log(self) -> str:
        _, out, _ = self._module.run_command(
            ["journalctl", "--unit=rabbitmq-server", "--lines=200", "--output=cat", "--no-pager"]
        )
        return "\n".join([line for line in out.splitlines() if "[error]" in line][-8:])


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["looked", "started", "restarted", "reloaded"], "required": True},
            "name": {"type": "str", "required": True},
            "addresses": {"type": "dict"},
            "may_found": {"type": "bool", "default": False},
            "vhosts": {"type": "list", "elements": "str", "default": []},
            "port": {"type": "int", "default": 15671},
            "user": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "ca_file": {"type": "path"},
            "timeout": {"type": "int", "default": 180},
        },
        required_if=[
            ("state", "started", ("addresses", "user", "password", "ca_file")),
            ("state", "restarted", ("addresses", "user", "password", "ca_file")),
        ],
        supports_check_mode=True,
    )
    node = Node(module)
    {"looked": node.look, "started": node.start, "restarted": node.restart, "reloaded": node.reload}[
        module.params["state"]
    ]()
    module.exit_json(changed=bool(node.actions), actions=node.actions, data=node.data, running=node.running)


if __name__ == "__main__":
    main()
