#!/usr/bin/python
"""Form a Valkey cluster out of its instances, and take back those that lost their data."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.valkey_spread import SLOTS, Connection, Login, Node, ValkeyError, View, synced, wait_for

DOCUMENTATION = r"""
module: valkey_cluster
short_description: Form Valkey clusters and add replaced instances back
description:
  - Runs on one host for all. Where no instance of a cluster serves a slot, the cluster is formed - the first instance of each
    host is a primary, the second replicates the primary of a host in another zone. An interrupted formation goes on.
  - An instance that knows nobody and holds nothing joins as replica of a primary that lacks one; what the cluster remembers of
    its predecessor is forgotten. An instance that holds keys of its own is refused, and nothing is ever emptied.
options:
  clusters:
    description: Clusters, each with C(name) and C(instances), a list of C(host), C(address), C(zone), C(port), all primaries first.
    type: list
    elements: dict
    required: true
  required:
    description: Addresses whose instances must answer; others may be away once the cluster exists.
    type: list
    elements: str
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
    description: Seconds to wait for instances to answer, to agree and to follow.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Form the clusters
  valkey_cluster:
    clusters: "{{ __valkey_formation }}"
    required: "{{ ansible_play_hosts | map('extract', topology_addresses) | list }}"
    user: admin
    password: "{{ valkey_admin_password }}"
    ca_file: "{{ topology_ca_file }}"
  run_once: true
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be.
  returned: always
  type: list
"""


class RefusedError(Exception):
    """The cluster is in a state that a hand must look at."""


class Cluster:
    """One cluster, its wanted instances and the connections to them."""

    def __init__(self, wanted: dict[str, Any], login: Login, *, required: set[str], timeout: int, check: bool) -> None:
        self.name: str = wanted["name"]
        self._instances: list[dict[str, Any]] = wanted["instances"]
        self._zones = {item["address"]: item["zone"] for item in self._instances}
        self._login, self._required, self._timeout, self._check = login, required, timeout, check
        self._open: dict[tuple[str, int], Connection] = {}
        self.actions: list[str] = []

    def connect(self) -> list[str]:
        """Connect to every instance and return what went wrong for those that need not be there."""
        problems: dict[tuple[str, int], str] = {}

        def connected() -> bool:
            for item in self._instances:
                place = (item["address"], item["port"])
                if place in self._open:
                    continue
                try:
                    self._open[place] = Connection(*place, self._login)
                    problems.pop(place, None)
                except ValkeyError as error:
                    problems[place] = str(error)
            return not any(address in self._required for address, _ in problems)

        if not wait_for(connected, 0 if self._check else self._timeout, 0.5):
            raise ValkeyError("; ".join(problems.values()))
        return list(problems.values())

    def close(self) -> None:
        """Close all connections."""
        for connection in self._open.values():
            connection.close()

    def converge(self) -> None:
        """Form the cluster, or mend its membership."""
        views = {place: connection.nodes() for place, connection in self._open.items()}
        members = [place for place, nodes in views.items() if len(nodes) > 1 or any(node.slots for node in nodes)]
        if not members and len(self._open) < len(self._instances):
            raise RefusedError("a first formation needs every instance, and some do not answer")
        strangers = [place for place in views if place not in members]
        for place in strangers:
            self._refuse_data(place)
        seed = max(members, key=lambda place: len(views[place])) if members else next(iter(self._open))
        self._assign_slots(seed, first=not members)
        if strangers and not (not members and strangers == [seed]):
            self._meet(seed, [place for place in strangers if place != seed])
        self._replicate(seed)
        self._forget(seed)
        if not self._check:
            self._settle()

    def _refuse_data(self, place: tuple[str, int]) -> None:
        keys = self._open[place].call("DBSIZE")
        if keys:
            raise RefusedError(
                f"{place[0]}:{place[1]} is in no cluster and yet holds {keys} keys. Nothing is done to it: save them, or empty "
                f"its folder, and run again"
            )

    def _planned_primaries(self) -> list[tuple[str, int]]:
        seen: dict[str, int] = {}
        for item in self._instances:
            seen.setdefault(item["address"], item["port"])
        return list(seen.items())

    def _assign_slots(self, seed: tuple[str, int], *, first: bool) -> None:
        """Give every unassigned slot to the primary that the plan has for it. Only an unfinished formation has such slots."""
        owned: set[int] = set()
        for connection in self._open.values():
            for node in connection.nodes():
                for low, high in node.slots:
                    owned.update(range(low, high + 1))
        if len(owned) == SLOTS:
            return
        primaries = self._planned_primaries()
        if missing := [place for place in primaries if place not in self._open]:
            raise RefusedError(f"slots are unassigned and {missing[0][0]}:{missing[0][1]} does not answer")
        bounds = [SLOTS * index // len(primaries) for index in range(len(primaries) + 1)]
        for epoch, (place, (low, high)) in enumerate(zip(primaries, itertools.pairwise(bounds), strict=True), start=1):
            free = [slot for slot in range(low, high) if slot not in owned]
            if not free:
                continue
            self._act(f"{place[0]}:{place[1]} serves the slots {free[0]} to {free[-1]}")
            if self._check:
                continue
            if first:
                self._open[place].call("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            self._open[place].call("CLUSTER", "ADDSLOTS", *free)

    def _meet(self, seed: tuple[str, int], strangers: list[tuple[str, int]]) -> None:
        for place in strangers:
            self._act(f"{place[0]}:{place[1]} joins")
            if not self._check:
                self._open[seed].call("CLUSTER", "MEET", place[0], place[1])
        if self._check:
            return

        def all_know_all() -> bool:
            ids = {connection.text("CLUSTER", "MYID") for connection in self._open.values()}
            return all(
                ids <= {node.id for node in connection.nodes() if not node.failing}
                for connection in self._open.values()
            )

        if not wait_for(all_know_all, self._timeout):
            raise RefusedError(
                "the instances have not got to know each other in time: is the bus (port + 10000) open between hosts?"
            )

    def _replicate(self, seed: tuple[str, int]) -> None:
        """Make replicas of the primaries without slots, in other zones and where replicas are fewest."""
        if self._check:
            return
        view = View(self._open[seed].nodes(), self._zones)
        alive = [primary for primary in view.primaries if not primary.failing]
        count = {primary.id: len([node for node in view.replicas[primary.id] if not node.failing]) for primary in alive}
        wanted = {(item["address"], item["port"]): item for item in self._instances}
        idle = [
            node
            for node in view.nodes
            if "master" in node.flags and not node.slots and node.place in self._open and self._is_idle(node)
        ]
        order = list(wanted)
        for node in sorted(idle, key=lambda node: order.index(node.place)):
            position = [address for address, _ in self._planned_primaries()].index(node.address)

            def cost(primary: Node, node: Node = node, position: int = position) -> tuple[int, bool, int]:
                hosts = [address for address, _ in self._planned_primaries()]
                behind = hosts.index(primary.address) if primary.address in hosts else 0
                return count[primary.id], view.zone(primary) == view.zone(node), (position - 1 - behind) % len(hosts)

            target = min((primary for primary in alive if primary.address != node.address), key=cost, default=None)
            if target is None:
                raise RefusedError(f"no primary for the replica {node.address}:{node.port}")
            self._act(f"{node.address}:{node.port} replicates {target.address}:{target.port}")
            connection = self._open[node.place]
            if not wait_for(lambda c=connection, t=target: t.id in {other.id for other in c.nodes()}, self._timeout):
                raise RefusedError(f"{node.address}:{node.port} does not learn of {target.address}:{target.port}")
            connection.call("CLUSTER", "REPLICATE", target.id)
            count[target.id] += 1

    def _is_idle(self, node: Node) -> bool:
        """Ask the node itself: who has just come back may not know yet that another has taken over its slots."""
        return any("myself" in own.flags and not own.slots for own in self._open[node.place].nodes())

    def _forget(self, seed: tuple[str, int]) -> None:
        """Forget members that are gone for good: no slots, and their place taken by another or no longer wanted."""
        wanted = {(item["address"], item["port"]) for item in self._instances}
        present = {connection.text("CLUSTER", "MYID") for connection in self._open.values()}
        gone = [
            node
            for node in self._open[seed].nodes()
            if node.id not in present
            and node.flags & {"fail", "noaddr"}
            and not node.slots
            and (node.place in self._open or node.place not in wanted)
        ]
        for node in gone:
            self._act(f"the cluster forgets {node.id[:8]}, once at {node.address}:{node.port}")
            if self._check:
                continue
            for connection in self._open.values():
                with contextlib.suppress(ValkeyError):
                    connection.call("CLUSTER", "FORGET", node.id)

    def _settle(self) -> None:
        """Wait until every instance that answers says that all is well and every replica follows."""

        def well() -> bool:
            for connection in self._open.values():
                if connection.info("cluster state")["cluster_state"] != "ok":
                    return False
                if connection.info("replication")["role"] == "slave" and not synced(connection):
                    return False
            return True

        if not wait_for(well, self._timeout):
            states = [
                f"{connection.address}:{connection.port} {connection.info('cluster state')['cluster_state']}, "
                f"{connection.info('replication')['role']}, link {connection.info('replication').get('master_link_status')}"
                for connection in self._open.values()
            ]
            raise RefusedError("not healthy in time: " + "; ".join(states))

    def _act(self, what: str) -> None:
        self.actions.append(f"{self.name}: {what}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "clusters": {"type": "list", "elements": "dict", "required": True},
            "required": {"type": "list", "elements": "str", "required": True},
            "user": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "ca_file": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    login = Login(parameters["user"], parameters["password"], parameters["ca_file"])
    actions: list[str] = []
    for wanted in parameters["clusters"]:
        cluster = Cluster(
            wanted,
            login,
            required=set(parameters["required"]),
            timeout=parameters["timeout"],
            check=module.check_mode,
        )
        try:
            for problem in cluster.connect():
                module.warn(f"Valkey cluster {cluster.name}: {problem}")
            cluster.converge()
        except RefusedError as error:
            module.fail_json(msg=f"Valkey cluster {cluster.name}: {error}.", actions=actions + cluster.actions)
        except (ValkeyError, OSError) as error:
            if module.check_mode:
                module.exit_json(changed=True, actions=[*actions, f"{cluster.name}: not running yet ({error})"])
            module.fail_json(msg=f"Valkey cluster {cluster.name}: {error}", actions=actions + cluster.actions)
        finally:
            cluster.close()
        actions += cluster.actions
    module.exit_json(changed=bool(actions), actions=actions)


if __name__ == "__main__":
    main()
