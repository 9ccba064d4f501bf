#!/usr/bin/python3
"""Keep this host's replicas of services at what the record says, and tell Prometheus of them.

How many replicas a service has over all hosts stands in etcd, where the autoscaler or ansible/scale.yml writes it. Each host watches
that, starts what it lacks of its share and stops what is too many, each after its last request. Nothing is sent to a host, so
nothing can be lost on the way: a host that was away reads the record when it is back, and one that cannot read it keeps what it has.

Argument: the configuration, JSON that the role `service` writes.
"""

from __future__ import annotations

import glob
import http.client
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import run
from typing import Any

from service_host import (
    REMEMBERED,
    FailedError,
    HostProxy,
    Service,
    Units,
    alone,
    difference,
    remembered_replicas,
    settle,
)
from service_record import SCALING, Etcd, Record, RecordUnreachableError, encode

# A watch that says nothing for so long is begun anew, in case that its member of etcd is gone without a word.
WATCH_SECONDS = 15
RETRY_SECONDS = 2
LOGGER = logging.getLogger("replicas")


def share(replicas: int, hosts: list[str], host: str) -> int:
    """Return how many of a service's replicas a host has, as ansible/plugins/filter/scaling.py spreads them."""
    each, more = divmod(replicas, len(hosts))
    return each + (hosts.index(host) < more)


class Keeper:
    """The services of this host whose replicas follow the record."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.host: str = config["host"]
        self.entries: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in config["services"]}
        self.record = Record(config["record"])
        self.units = Units(_run)
        self.proxy = HostProxy(config["socket"])
        self.counts = remembered_replicas()
        self.read_at = 0.0
        self.readable = True
        self.failures = dict.fromkeys(self.entries, 0)

    def service(self, name: str) -> Service:
        """Return a service with the replicas that this host is to have of it."""
        entry = self.entries[name]
        total = min(max(self.counts.get(name, entry["min"]), entry["min"]), entry["max"])
        return Service(
            name=name,
            kind=entry["kind"],
            network=entry["network"],
            replicas=share(total, entry["hosts"], self.host),
            port=entry["port"],
            health=entry["health"],
            drain_seconds=entry["drain_seconds"],
            image="",
            pre_deploy=False,
        )

    def read(self) -> None:
        """Read the record, and remember it for a start at which nobody can be asked."""
        counts = self.record.replicas()
        self.read_at = time.time()
        if counts != self.counts:
            self.counts = counts
            temporary = Path(f"{REMEMBERED}.new")
            temporary.write_text(json.dumps(counts), encoding="utf-8")
            temporary.rename(REMEMBERED)

    def keep(self) -> None:
        """Start what is missing, stop what is too many. What fails is counted and tried again at the next look."""
        for name in self.entries:
            service = self.service(name)
            try:
                if difference(self.units, service):
                    with alone():
                        self._settle(service)
            except FailedError as error:
                self.failures[name] += 1
                LOGGER.error("%s: %s", name, error)

    def _settle(self, service: Service) -> None:
        """Act on what there is now, which may be other than before the lock was had."""
        what = difference(self.units, service)
        # Where a host has no unit yet, a playbook has not been here and comes first.
        if not what or not os.path.exists(f"/run/systemd/generator/svc-{service.name}@.service"):
            return
        started = time.monotonic()
        settle(self.units, self.proxy, service, what, self.config["ready_seconds"])
        done = [f"started {replica}" for replica in what.missing] + [f"stopped {unit}" for unit in what.surplus]
        LOGGER.info("%s: %s, in %.1f s", service.name, ", ".join(done), time.monotonic() - started)

    def update(self) -> None:
        """Read the record, and do what it says; where it cannot be read, what it said before."""
        try:
            self.read()
            self.readable = True
        except RecordUnreachableError as error:
            if self.readable:
                LOGGER.warning("the record cannot be read, replicas stay as they are: %s", error)
            self.readable = False
        self.keep()

    def figures(self) -> Iterator[str]:
        """Tell what Prometheus asks for, a line each."""
        yield f"freehold_replicas_read_timestamp_seconds {self.read_at:.3f}"
        for name in self.entries:
            service = self.service(name)
            yield f'freehold_replicas_wanted{{service="{name}"}} {service.replicas}'
            yield f'freehold_replicas_failures_total{{service="{name}"}} {self.failures[name]}'
            folders = {replica: folder for folder in _cgroups(service) for replica in [_replica(folder)]}
            for replica, folder in sorted(folders.items()):
                # It may end meanwhile.
                with suppress(FileNotFoundError):
                    labels = f'service="{name}",replica="{replica}"'
                    yield f"freehold_replica_cpu_seconds_total{{{labels}}} {_cpu_seconds(folder):.6f}"
            ready = len(folders)
            if service.is_web:
                servers = {replica: row for replica, row in self.proxy.servers(service).items() if replica in folders}
                ready = sum(row["status"].startswith("UP") for row in servers.values())
                for replica, row in servers.items():
                    labels = f'service="{name}",replica="{replica}"'
                    yield f"freehold_replica_in_flight{{{labels}}} {row['scur']}"
                    yield f"freehold_replica_requests_total{{{labels}}} {row['stot']}"
            yield f'freehold_replicas_ready{{service="{name}"}} {ready}'

    def targets(self) -> list[dict[str, Any]]:
        """Return where the replicas' own figures are, as Prometheus's discovery over HTTP takes it."""
        found = []
        for name, entry in self.entries.items():
            for replica in range(1, self.service(name).replicas + 1) if entry["metrics"] else ():
                labels = {
                    "__metrics_path__": f"/services/{name}/{replica}",
                    "service": name,
                    "replica": str(replica),
                    "instance": self.host,
                    "zone": self.config["zone"],
                }
                often = {"__scrape_interval__": "2s", "__scrape_timeout__": "2s"} if entry["asked_often"] else {}
                found.append({"targets": [self.config["figures"]], "labels": labels | often})
        return found


def _run(command: list[str]) -> tuple[int, str, str]:
    done = run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def watched(etcd: Etcd) -> Iterator[Iterator[bytes]]:
    """Give, once a watch over the record has begun, its messages; they end when none came for a while or the line broke.

    Raises OSError, HTTPException or ValueError where a member of etcd gives no watch.
    """
    endpoint = etcd.endpoint()
    asked = {"create_request": {"key": encode(SCALING), "range_end": encode(SCALING[:-1] + "0")}}
    with closing(etcd.open(endpoint, WATCH_SECONDS)) as line:
        line.request("POST", "/v3/watch", json.dumps(asked), {"Authorization": etcd.authenticate(endpoint)})
        answer = line.getresponse()
        first = answer.readline()
        if "created" not in json.loads(first).get("result", {}) or b"cancel" in first:
            raise PermissionError(first.decode(errors="replace"))
        yield _messages(answer)


def _messages(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while message := answer.readline():
            yield message
    except TimeoutError:
        return


def _cgroups(service: Service) -> list[str]:
    unit = f"svc-{service.name}@[1-9].service"
    return glob.glob(f"/sys/fs/cgroup/system.slice/{unit}") + glob.glob(f"/sys/fs/cgroup/system.slice/*/{unit}")


def _replica(folder: str) -> int:
    return int(folder.rpartition("@")[2].removesuffix(".service"))


def _cpu_seconds(folder: str) -> float:
    with open(f"{folder}/cpu.stat", encoding="ascii") as file:
        return int(file.readline().removeprefix("usage_usec ")) / 1e6


class Figures(BaseHTTPRequestHandler):
    """What the host proxy passes on from Prometheus."""

    keeper: Keeper

    def do_GET(self) -> None:
        """Answer with figures, or with where replicas give their own."""
        try:
            if self.path == "/targets":
                kind, body = "application/json", json.dumps(self.keeper.targets())
            else:
                kind, body = "text/plain; version=0.0.4", "".join(f"{line}\n" for line in self.keeper.figures())
        except (FailedError, OSError) as error:
            self.send_error(http.client.SERVICE_UNAVAILABLE, str(error).replace("\n", " "))
            return
        data = body.encode()
        self.send_response(http.client.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing of each question."""


def main() -> None:
    """Keep the replicas for good."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    keeper = Keeper(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Figures.keeper = keeper
    server = ThreadingHTTPServer(("127.0.0.1", keeper.config["port"]), Figures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        try:
            with watched(keeper.record) as changes:
                keeper.update()
                for _ in changes:
                    keeper.update()
        except (OSError, http.client.HTTPException, ValueError):
            keeper.update()
            time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    main()
