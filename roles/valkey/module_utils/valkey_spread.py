#!/usr/bin/python3
"""Keep a Valkey cluster spread: one primary a host, each replica in another zone than its primary.

A timer runs this on every Valkey host. A host only moves what runs on itself, one step a run and only while the whole cluster is
healthy, so hosts never work against each other. The role's modules import the client and the view from here.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import pathlib
import socket
import ssl
import sys
import time
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Self

SLOTS = 16384
Reply = str | int | list["Reply"] | None


class ValkeyError(Exception):
    """An instance cannot be reached, or refuses a command."""


@dataclasses.dataclass(frozen=True)
class Login:
    """How to talk to every instance."""

    user: str
    password: str
    ca_file: str


class Connection:
    """One authenticated TLS connection to one instance."""

    def __init__(self, address: str, port: int, login: Login, *, timeout: float = 3.0) -> None:
        self.address, self.port = address, port
        context = ssl.create_default_context(cafile=login.ca_file)
        try:
            plain = socket.create_connection((address, port), timeout)
            try:
                self._socket = context.wrap_socket(plain, server_hostname=address)
            except OSError:
                plain.close()
                raise
        except OSError as error:
            raise ValkeyError(f"{address}:{port}: {error}") from error
        self._file = self._socket.makefile("rb")
        try:
            self.call("AUTH", login.user, login.password)
        except ValkeyError:
            self.close()
            raise

    def call(self, *words: str | int) -> Reply:
        """Return the answer to one command; raise ValkeyError where it is an error or none comes."""
        encoded = [str(word).encode() for word in words]
        request = b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        try:
            self._socket.sendall(request)
            return self._read()
        except OSError as error:
            raise ValkeyError(f"{self.address}:{self.port}: {error}") from error

    def text(self, *words: str | int) -> str:
        """Return the answer to one command as text."""
        return str(self.call(*words))

    def info(self, section: str) -> dict[str, str]:
        """Return one section of INFO, or of CLUSTER INFO for the section `cluster state`."""
        text = self.text("CLUSTER", "INFO") if section == "cluster state" else self.text("INFO", section)
        pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
        return {name: value.strip() for name, value in pairs}

    def nodes(self) -> list[Node]:
        """Return the cluster as this instance sees it."""
        return [Node.parse(line) for line in self.text("CLUSTER", "NODES").splitlines() if line]

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._file.close()
            self._socket.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def _read(self) -> Reply:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ValkeyError(f"{self.address}:{self.port} closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"-":
            raise ValkeyError(f"{self.address}:{self.port}: {rest}")
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        count = int(rest)
        if count < 0:
            return None
        if kind == b"$":
            return self._file.read(count + 2)[:-2].decode(errors="replace")
        if kind == b"*":
            return [self._read() for _ in range(count)]
        raise ValkeyError(f"{self.address}:{self.port} does not speak RESP2: {line!r}")


@dataclasses.dataclass(frozen=True)
class Node:
    """A line of CLUSTER NODES."""

    id: str
    address: str
    port: int
    flags: frozenset[str]
    primary: str
    slots: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, line: str) -> Node:
        """Return the node that one line describes."""
        fields = line.split()
        place = fields[1].split(",", 1)[0].rsplit("@", 1)[0]
        address, _, port = place.rpartition(":")
        ranges = [word.partition("-") for word in fields[8:] if not word.startswith("[")]
        return cls(
            id=fields[0],
            address=address,
            port=int(port or 0),
            flags=frozenset(fields[2].split(",")),
            primary="" if fields[3] == "-" else fields[3],
            slots=tuple((int(low), int(high or low)) for low, _, high in ranges),
        )

    @property
    def place(self) -> tuple[str, int]:
        """Return address and port."""
        return self.address, self.port

    @property
    def failing(self) -> bool:
        """Tell whether the instance that was asked does not reach this one, or not yet."""
        return bool(self.flags & {"fail", "fail?", "noaddr", "handshake"})

    @property
    def slot_count(self) -> int:
        """Return how many slots it serves."""
        return sum(high - low + 1 for low, high in self.slots)


@dataclasses.dataclass(frozen=True)
class Move:
    """What one replica does: become the primary of its shard, or replicate another primary."""

    replica: Node
    target: Node | None = None

    def __str__(self) -> str:
        """Say it."""
        name = f"{self.replica.address}:{self.replica.port}"
        if self.target is None:
            return f"{name} becomes primary of its shard"
        return f"{name} replicates {self.target.address}:{self.target.port}"


class View:
    """Where primaries and replicas are."""

    def __init__(self, nodes: Iterable[Node], zones: Mapping[str, str]) -> None:
        self.nodes = list(nodes)
        self._zones = zones
        self.by_id = {node.id: node for node in self.nodes}
        self.primaries = sorted((node for node in self.nodes if node.slots), key=lambda node: node.slots)
        self.replicas: dict[str, list[Node]] = {node.id: [] for node in self.primaries}
        for node in self.nodes:
            if node.primary in self.replicas:
                self.replicas[node.primary].append(node)
        self.load = collections.Counter(node.address for node in self.primaries)

    def zone(self, node: Node) -> str:
        """Return the zone of a node's host."""
        return self._zones.get(node.address, node.address)

    def healthy(self) -> bool:
        """Tell whether every node answers and every slot is served."""
        return not any(node.failing for node in self.nodes) and sum(node.slot_count for node in self.nodes) == SLOTS

    def spread(self) -> bool:
        """Tell whether no host has two primaries more than another, and every primary a replica in another zone."""
        loads = [self.load[address] for address in {node.address for node in self.nodes}]
        return max(loads) - min(loads) < 2 and all(
            any(self.zone(replica) != self.zone(primary) for replica in self.replicas[primary.id])
            for primary in self.primaries
        )

    def next_move(self) -> Move | None:
        """Return the one move that the whole cluster should see next, wherever it is to be made."""
        if not self.healthy():
            return None
        return self._adopt_orphan() or self._leave_own_zone() or self._take_over()

    def own_move(self, address: str) -> Move | None:
        """Return what the host at this address should do now, if anything."""
        if not self.healthy():
            return None
        move = self._adopt_orphan() or self._leave_own_zone()
        if move is not None:
            return move if move.replica.address == address else None
        return self._take_over(address)

    def _adopt_orphan(self) -> Move | None:
        """Give a primary without a replica one of a primary that has two."""
        for orphan in (primary for primary in self.primaries if not self.replicas[primary.id]):
            spare = [
                replica
                for replicas in self.replicas.values()
                for replica in replicas
                if len(replicas) > 1 and self.zone(replica) != self.zone(orphan)
            ]
            if spare:
                return Move(min(spare, key=lambda replica: replica.id), orphan)
        return None

    def _leave_own_zone(self) -> Move | None:
        """Send a replica beside its primary to another one, whose own replica then adopts the primary left behind."""
        pairs = [(self.by_id[replica.primary], replica) for group in self.replicas.values() for replica in group]
        for primary, replica in sorted(pairs, key=lambda pair: pair[1].id):
            if self.zone(primary) != self.zone(replica):
                continue
            for other, its_replica in pairs:
                if self.zone(other) != self.zone(replica) and self.zone(its_replica) != self.zone(primary):
                    return Move(replica, other)
        return None

    def _take_over(self, address: str = "") -> Move | None:
        """Let a host with at least two primaries fewer than its primary's host take that shard over."""
        moves = [
            (self.load[replica.address] - self.load[primary.address], replica.port, replica.id, replica)
            for primary in self.primaries
            for replica in self.replicas[primary.id]
            if address in ("", replica.address)
        ]
        moves = sorted(move for move in moves if move[0] <= -2)
        return Move(moves[0][3]) if moves else None


def wait_for(condition: Callable[[], bool], seconds: float, pause: float = 0.2) -> bool:
    """Return whether a condition came true in time; instances that do not answer meanwhile count as not yet."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ValkeyError):
            if condition():
                return True
        if time.monotonic() >= end:
            return False
        time.sleep(pause)


def synced(connection: Connection) -> bool:
    """Tell whether a replica follows its primary."""
    state = connection.info("replication")
    return state.get("role") == "slave" and state.get("master_link_status") == "up"


def make(move: Move, login: Login) -> bool:
    """Make a move and return whether it was done; a replica that does not follow its primary yet waits for the next run."""
    with Connection(*move.replica.place, login) as connection:
        if move.target is not None:
            connection.call("CLUSTER", "REPLICATE", move.target.id)
            return True
        if not synced(connection):
            return False
        connection.call("CLUSTER", "FAILOVER")
        return wait_for(lambda: connection.info("replication").get("role") == "master", 6)


def main() -> int:
    """Make at most one move in each cluster, or with --show print what is where, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=pathlib.Path, default=pathlib.Path("/etc/valkey/spread.json"))
    parser.add_argument("--show", action="store_true", help="print the state of the clusters and move nothing")
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text(encoding="utf-8"))
    login = Login(config["user"], config["password"], config["ca_file"])
    shown = {}
    for name, ports in config["clusters"].items():
        for port in ports:
            try:
                with Connection(config["address"], port, login) as connection:
                    view = View(connection.nodes(), config["zones"])
            except ValkeyError as error:
                print(f"<4>{name}: {error}", file=sys.stderr)
                continue
            if arguments.show:
                shown[name] = {
                    "healthy": view.healthy(),
                    "spread": view.spread(),
                    "shards": [
                        {
                            "primary": f"{primary.address}:{primary.port}",
                            "replicas": [f"{node.address}:{node.port}" for node in view.replicas[primary.id]],
                        }
                        for primary in view.primaries
                    ],
                }
            elif move := view.own_move(config["address"]):
                try:
                    done = make(move, login)
                except ValkeyError as error:
                    print(f"<4>{name}: {move}: {error}", file=sys.stderr)
                else:
                    print(f"<5>{name}: {move}: {'done' if done else 'not yet'}")
            break
    if arguments.show:
        print(json.dumps(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
