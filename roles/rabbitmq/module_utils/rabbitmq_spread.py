#!/usr/bin/python3
"""Keep RabbitMQ's quorum queues spread: a member on every node, and each queue's leader on the node that it belongs to.

A timer runs this on every broker. A node only takes what is its own: membership for itself, and leadership of the queues that
belong to it, and only while every member of the queue is up. So nodes never work against each other. The role's modules import the
client from here.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import http.client
import json
import pathlib
import ssl
import subprocess
import sys
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

CONTROL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
QUEUES = "/usr/lib/rabbitmq/bin/rabbitmq-queues"


class ApiError(Exception):
    """The broker's management interface cannot be reached, or refuses a request."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """The management interface of one broker."""

    def __init__(self, address: str, port: int, *, user: str, password: str, ca_file: str, timeout: float = 10) -> None:
        self._place = f"{address}:{port}"
        context = ssl.create_default_context(cafile=ca_file)
        self._connection = http.client.HTTPSConnection(address, port, timeout=timeout, context=context)
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}

    def call(self, method: str, *path: str, body: object = None, query: str = "") -> Any:  # noqa: ANN401  (what JSON holds)
        """Return the decoded answer; each element of the path is quoted. Raise ApiError for anything but success."""
        address = "/".join(["/api", *(urllib.parse.quote(part, safe="") for part in path)]) + query
        data = None if body is None else json.dumps(body)
        try:
            self._connection.request(method, address, body=data, headers=self._headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ApiError(f"{self._place}: {error}") from error
        if response.status >= 300:
            raise ApiError(
                f"{self._place}: {method} {address}: {response.status} {answer.decode(errors='replace')[:300]}",
                response.status,
            )
        return json.loads(answer) if answer else None

    def get(self, *path: str, query: str = "") -> Any:  # noqa: ANN401
        """Return what a GET answers."""
        return self.call("GET", *path, query=query)

    def quorum_queues(self, vhost: str) -> list[Queue]:
        """Return the quorum queues of a virtual host."""
        listed = self.get("queues", vhost, query="?disable_stats=true&enable_queue_totals=true")
        return [Queue.parse(entry) for entry in listed if entry.get("type") == "quorum"]

    def running_nodes(self) -> set[str]:
        """Return the names of the nodes that are up."""
        return {node["name"] for node in self.get("nodes", query="?columns=name,running") if node.get("running")}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@dataclasses.dataclass(frozen=True)
class Queue:
    """Where the members of a quorum queue are."""

    vhost: str
    name: str
    leader: str
    members: frozenset[str]
    online: frozenset[str]

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> Queue:
        """Return the queue that an entry of the management interface describes."""
        return cls(
            vhost=entry["vhost"],
            name=entry["name"],
            leader=entry.get("leader") or "",
            members=frozenset(entry.get("members") or ()),
            online=frozenset(entry.get("online") or ()),
        )

    @property
    def whole(self) -> bool:
        """Tell whether it has a leader and every member is up."""
        return bool(self.leader) and self.leader in self.online and self.members == self.online


def to_join(queues: Iterable[Queue], node: str) -> list[Queue]:
    """Return the queues that this node should become a member of, each only while all its members are up."""
    return [queue for queue in queues if node not in queue.members and queue.whole]


def to_lead(queues: Iterable[Queue], node: str, own: Iterable[tuple[str, str]], nodes: set[str]) -> list[Queue]:
    """Return the queues whose leadership this node should take: its own, whole, and with a member on every running node."""
    wanted = set(own)
    return [
        queue
        for queue in queues
        if (queue.vhost, queue.name) in wanted
        and queue.leader != node
        and queue.whole
        and node in queue.members
        and nodes <= queue.members
    ]


def erlang(text: str) -> str:
    """Return an Erlang binary of a text."""
    return f"<<{','.join(str(byte) for byte in text.encode())}>>"


def transfer(queues: Sequence[Queue], node: str) -> str:
    """Return the Erlang expression that makes a node the leader of queues."""
    names = ",".join(f"{{{erlang(queue.vhost)},{erlang(queue.name)}}}" for queue in queues)
    return (
        f"[begin {{ok,Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(V, queue, N)), "
        f"rabbit_quorum_queue:transfer_leadership(Q, '{node}') end || {{V,N}} <- [{names}]]."
    )


def run(*command: str) -> str:
    """Return what a program of the broker's prints; raise ApiError where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=45, cwd="/var/lib/rabbitmq")
    except subprocess.TimeoutExpired as error:
        raise ApiError(str(error)) from error
    if done.returncode:
        raise ApiError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout.strip()


def main() -> int:
    """Take the memberships and leaderships that are this node's, or with --show print what is where, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=pathlib.Path, default=pathlib.Path("/etc/rabbitmq/spread.json"))
    parser.add_argument("--show", action="store_true", help="print the state of the queues and move nothing")
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text(encoding="utf-8"))
    node = config["node"]
    api = Api(
        config["address"], config["port"], user=config["user"], password=config["password"], ca_file=config["ca_file"]
    )
    try:
        queues = [queue for vhost in config["vhosts"] for queue in api.quorum_queues(vhost)]
        if arguments.show:
            own = {(queue["vhost"], queue["name"]): queue["node"] for queue in config["queues"]}
            shown = [
                {
                    "queue": queue.name,
                    "leader": queue.leader,
                    "members": len(queue.members),
                    "online": len(queue.online),
                    "in_place": own.get((queue.vhost, queue.name), queue.leader) == queue.leader,
                }
                for queue in queues
            ]
            print(json.dumps({"running": sorted(api.running_nodes()), "queues": shown}))
            return 0
        joins = to_join(queues, node)
        for queue in joins:
            run(QUEUES, "add_member", "--vhost", queue.vhost, queue.name, node)
            print(f"<5>{queue.name}: {node} became a member", flush=True)
        if joins:
            queues = [queue for vhost in config["vhosts"] for queue in api.quorum_queues(vhost)]
        mine = [(queue["vhost"], queue["name"]) for queue in config["queues"] if queue["node"] == node]
        if any(queue.leader != node and (queue.vhost, queue.name) in mine for queue in queues):
            moves = to_lead(queues, node, mine, api.running_nodes())
            if moves:
                answer = run(CONTROL, "eval", transfer(moves, node))
                print(f"<5>{', '.join(queue.name for queue in moves)}: leadership to {node}: {answer}")
    except ApiError as error:
        print(f"<4>{error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
