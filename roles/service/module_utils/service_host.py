"""Units and host proxy of one host, as the replicas' module sees them."""

from __future__ import annotations

import csv
import fcntl
import glob
import http.client
import io
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

QUADLETS = "/etc/containers/systemd/freehold"
HOME = "/etc/freehold/services"
NETWORKS = "/etc/containers/networks"
# Who starts or stops replicas holds it: a playbook, or this host by itself.
LOCK = "/run/freehold-replicas.lock"
LOCK_SECONDS = 120
# How many replicas services had over all hosts when this host last read the record.
REMEMBERED = "/var/lib/freehold/replicas.json"
# The host proxy asks replicas that it knows to be down once a second.
POLL_SECONDS = 0.2
HEALTH_TIMEOUT_SECONDS = 2


class FailedError(Exception):
    """What went wrong, in words for the operator."""


def remembered_replicas() -> dict[str, int]:
    """Return how many replicas services had over all hosts when this host last read the record; none where it never did."""
    if not os.path.exists(REMEMBERED):
        return {}
    with open(REMEMBERED, encoding="utf-8") as file:
        counts: dict[str, int] = json.load(file)
    return counts


@contextmanager
def alone(seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Keep others from starting and stopping replicas meanwhile; raise FailedError where they take longer than that."""
    give_up = time.monotonic() + seconds
    with open(LOCK, "w", encoding="ascii") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise FailedError(
                        f"replicas are being changed for more than {seconds:.0f} s: {LOCK} is held"
                    ) from None
                time.sleep(POLL_SECONDS)
        yield


@dataclass(frozen=True)
class Service:
    """What a host must know of a service to run it."""

    name: str
    kind: str
    network: str
    replicas: int
    port: int
    health: str
    drain_seconds: int
    image: str
    pre_deploy: bool

    @property
    def is_web(self) -> bool:
        """Whether the host proxy gives it requests."""
        return self.kind == "web"

    @property
    def backend(self) -> str:
        """Name of its backend in the host proxy."""
        return f"service-{self.name}"

    @property
    def one_off(self) -> str:
        """Unit of its one-off container."""
        return f"svc-{self.name}-pre-deploy.service"

    def unit(self, replica: int) -> str:
        """Return the unit of a replica."""
        return f"svc-{self.name}@{replica}.service"

    def address(self, replica: int) -> str:
        """Return the address of a replica."""
        return f"{self.network}.{10 + replica}"

    def changed_at(self) -> float:
        """Return when the files that a replica starts with were last written."""
        files = [
            f"{QUADLETS}/svc-{self.name}.network",
            f"{QUADLETS}/svc-{self.name}@.container",
            f"{HOME}/{self.name}/settings.env",
            *glob.glob(f"{HOME}/{self.name}/secrets/*"),
        ]
        return max((os.stat(path).st_mtime for path in files if os.path.exists(path)), default=0)


class Units:
    """systemd, and Podman where images are concerned."""

    def __init__(self, run: Callable[..., tuple[int, str, str]]) -> None:
        self._run = run

    def _replicas(self) -> list[dict[str, str]]:
        code, out, err = self._run(
            ["systemctl", "show", "--property=Id,ActiveState,InactiveExitTimestampMonotonic", "svc-*@*.service"]
        )
        if code != 0:
            raise FailedError(f"systemctl show: {err.strip()}")
        return [dict(line.split("=", 1) for line in block.splitlines()) for block in out.strip().split("\n\n") if block]

    def started(self) -> dict[str, float]:
        """Return when each active unit of a replica was started."""
        booted = time.time() - time.monotonic()
        return {
            unit["Id"]: booted + int(unit["InactiveExitTimestampMonotonic"]) / 1e6
            for unit in self._replicas()
            if unit["ActiveState"] == "active"
        }

    def alive(self) -> list[str]:
        """Return the units of replicas that run or that systemd will start again."""
        return [unit["Id"] for unit in self._replicas() if unit["ActiveState"] not in {"inactive", "failed"}]

    def alive_of(self, service: Service) -> list[int]:
        """Return which replicas of a service run, or will be started again."""
        prefix, suffix = service.unit(0).split("0")
        return [
            int(unit.removeprefix(prefix).removesuffix(suffix))
            for unit in self.alive()
            if unit.startswith(prefix) and unit.endswith(suffix)
        ]

    def known(self) -> set[str]:
        """Return the names of services that have a network or files on this host."""
        networks = {Path(path).stem.removeprefix("svc-") for path in glob.glob(f"{NETWORKS}/svc-*.json")}
        return networks | {Path(path).name for path in glob.glob(f"{HOME}/*/")}

    def forget(self, name: str) -> None:
        """Remove the units of a service that does not run any more, its network, its settings and its secrets.

        The units too: what keeps the replicas on this host knows the service until it is told otherwise, and starts what has one.
        """
        self._run(["systemctl", "stop", f"svc-{name}-network.service"])
        units = [f"svc-{name}.network", f"svc-{name}-pre-deploy.container"]
        for unit in units + glob.glob(f"svc-{name}@*.container", root_dir=QUADLETS):
            Path(QUADLETS, unit).unlink(missing_ok=True)
        self._run(["systemctl", "daemon-reload"])
        if os.path.exists(f"{NETWORKS}/svc-{name}.json"):
            code, _, err = self._run(["podman", "network", "rm", f"svc-{name}"])
            if code != 0:
                raise FailedError(f"the network of {name} was not removed: {err.strip()}")
        if os.path.exists(f"{HOME}/{name}"):
            shutil.rmtree(f"{HOME}/{name}")

    def start(self, *units: str) -> None:
        """Start units, side by side, and return when all run or one failed."""
        self.reset(*units)
        code, _, err = self._run(["systemctl", "start", *units])
        if code != 0:
            raise FailedError(f"{err.strip()}\n{self.journal(*units)}")

    def stop(self, *units: str) -> None:
        """Stop units; each container has its time to finish."""
        code, _, err = self._run(["systemctl", "stop", *units])
        if code != 0:
            raise FailedError(err.strip())

    def reset(self, *units: str) -> None:
        """Forget that units failed, such as those whose container had to be killed when its time to finish was over."""
        self._run(["systemctl", "reset-failed", *units])

    def journal(self, *units: str) -> str:
        """Return the last words of units."""
        selection = [f"--unit={unit}" for unit in units]
        _, out, _ = self._run(["journalctl", "--no-pager", "--output=cat", "--lines=20", *selection])
        return out.strip()

    def has_image(self, image: str) -> bool:
        """Return whether this host has an image already."""
        return self._run(["podman", "image", "exists", image])[0] == 0

    def pull(self, image: str) -> None:
        """Get an image from the registries, at the lowest priority: replicas answer requests meanwhile."""
        code, _, err = self._run(["nice", "-n", "19", "podman", "pull", "--quiet", image])
        if code != 0:
            raise FailedError(f"{image} was not pulled: {err.strip()}")


class HostProxy:
    """The runtime socket of this host's HAProxy."""

    def __init__(self, path: str) -> None:
        self._path = path

    def _ask(self, command: str) -> str:
        with closing(socket.socket(socket.AF_UNIX)) as line:
            line.settimeout(5)
            try:
                line.connect(self._path)
                line.sendall(f"{command}\n".encode())
                answer = b"".join(iter(lambda: line.recv(65536), b"")).decode()
            except OSError as error:
                raise FailedError(f"the host proxy does not answer at {self._path}: {error}") from error
        return answer.strip()

    def _tell(self, command: str) -> None:
        answer = self._ask(command)
        if answer:
            raise FailedError(f"the host proxy refuses `{command}`: {answer}")

    def servers(self, service: Service) -> dict[int, dict[str, str]]:
        """Return the statistics of a service's replicas."""
        rows = csv.DictReader(io.StringIO(self._ask(f"show stat {service.backend} 4 -1").removeprefix("# ")))
        return {
            int(row["svname"][1:]): row
            for row in rows
            if row["pxname"] == service.backend and row["svname"].startswith("r")
        }

    def announce(self, service: Service) -> None:
        """Tell the edges, which ask, that this host is about to be drained."""
        self._tell(f"add map virt@draining {service.name} 1")

    def withdraw(self, service: Service) -> None:
        """Tell the edges that this host takes requests again."""
        known = (line.split()[1:2] for line in self._ask("show map virt@draining").splitlines())
        if [service.name] in known:
            self._tell(f"del map virt@draining {service.name}")

    def drain(self, service: Service, replica: int) -> None:
        """Give a replica no more requests."""
        self._tell(f"set server {service.backend}/r{replica} state drain")

    def undrain(self, service: Service, replica: int) -> None:
        """Give a replica requests as soon as it is healthy."""
        self._tell(f"set server {service.backend}/r{replica} state ready")

    def is_announced(self, service: Service) -> bool:
        """Return whether this host says that it is being drained."""
        return any(line.split()[1:2] == [service.name] for line in self._ask("show map virt@draining").splitlines())

    def wait_idle(self, service: Service, replicas: list[int], seconds: float) -> None:
        """Return when the replicas have no request, or when the time is over."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            servers = self.servers(service)
            if all(int(servers[replica]["scur"]) == 0 for replica in replicas if replica in servers):
                return
            time.sleep(POLL_SECONDS)


def stop_after_last_request(units: Units, proxy: HostProxy, services: list[Service], surplus: list[str]) -> None:
    """Stop units of replicas; those of these services that have requests finish them before."""
    for service in services:
        if service.is_web:
            replicas = [replica for replica in proxy.servers(service) if service.unit(replica) in surplus]
            for replica in replicas:
                proxy.drain(service, replica)
            proxy.wait_idle(service, replicas, service.drain_seconds)
    units.stop(*surplus)
    units.reset(*surplus)


@dataclass(frozen=True)
class Difference:
    """What a service lacks on a host of the replicas that it is to have, and what it has beyond them."""

    missing: list[int]
    surplus: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.surplus)


def difference(units: Units, service: Service) -> Difference:
    """Return how a service's replicas on this host differ from what they are to be."""
    alive = units.alive_of(service)
    return Difference(
        missing=[replica for replica in range(1, service.replicas + 1) if replica not in alive],
        surplus=[service.unit(replica) for replica in alive if replica > service.replicas],
    )


def settle(units: Units, proxy: HostProxy, service: Service, what: Difference, ready_seconds: float) -> None:
    """Start what is missing and return when it is ready; stop what is too many, each after its last request."""
    if what.missing:
        units.start(*map(service.unit, what.missing))
        for replica in what.missing:
            if service.is_web:
                # It may have been drained when it was last stopped.
                proxy.undrain(service, replica)
            wait_ready(units, proxy, service, replica, ready_seconds)
    if what.surplus:
        stop_after_last_request(units, proxy, [service], what.surplus)


def is_ready(service: Service, replica: int) -> str:
    """Return why a replica is not ready, empty if it is."""
    address = service.address(replica)
    try:
        with closing(http.client.HTTPConnection(address, service.port, timeout=HEALTH_TIMEOUT_SECONDS)) as line:
            line.request("GET", service.health, headers={"Host": service.name})
            answer = line.getresponse()
            body = answer.read(500).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"{address}:{service.port}{service.health}: {error}"
    return "" if answer.status == http.client.OK else f"{service.health} answers {answer.status} {body}"


def wait_ready(units: Units, proxy: HostProxy, service: Service, replica: int, seconds: float) -> None:
    """Return when a replica is ready and, for a web service, the host proxy knows; raise FailedError after the time."""
    give_up = time.monotonic() + seconds
    while True:
        problem = is_ready(service, replica)
        if not problem and service.is_web:
            server = proxy.servers(service).get(replica)
            if server is None:
                raise FailedError(f"the host proxy has no place for replica {replica} of {service.name}")
            if not server["status"].startswith(("UP", "DRAIN")) or not server["check_status"].startswith("L7OK"):
                problem = f"the host proxy sees replica {replica} as {server['status']} ({server['check_status']})"
        if not problem:
            return
        if time.monotonic() > give_up:
            raise FailedError(
                f"{service.unit(replica)} is not ready after {seconds} s: {problem}\n{units.journal(service.unit(replica))}"
            )
        time.sleep(POLL_SECONDS)
