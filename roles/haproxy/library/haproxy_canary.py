#!/usr/bin/python
"""Give one host of a service a share of its requests, and judge the host beside the others."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import socket
import time
from contextlib import closing
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: haproxy_canary
short_description: Give one host of a service a share of its requests, and judge the host beside the others
description:
  - C(tried) gives a host a share of the requests that this edge has for a service, and watches for some seconds how the host and
    the others do. A host that does badly has no more requests when the module returns.
  - C(ended) gives all hosts of all services their equal shares again.
  - An answer of 5xx, no answer, and an attempt that the edge repeats at another host count as failed. The host does badly when it
    failed three requests or more, and more than a share of one hundredth above the others' explains; or when more answers than one
    hundredth explains took longer than 1.5 times the others' 99th percentile and 50 ms. What a share explains is its mean and three
    standard deviations of the binomial distribution, so that a few requests more or less decide nothing.
options:
  state: {type: str, choices: [tried, ended], required: true}
  services: {description: Names of services., type: list, elements: str, default: []}
  host: {description: Name of the host., type: str, default: ""}
  percent: {description: Share of the requests., type: int, default: 0}
  seconds: {description: Time to watch., type: int, default: 0}
"""

RETURN = r"""
host: {description: What the host did, with C(requests), C(failed) and C(p99_ms), the last -1 without answers., type: dict, returned: tried}
others: {description: The same of the others., type: dict, returned: tried}
reason: {description: Why the host does badly, empty if it does not., type: str, returned: tried}
"""

SOCKET = "/run/haproxy/admin.sock"
MAP = "/etc/haproxy/canaries.map"
POLL_SECONDS = 2.0
# Lines of the journal that are on their way when the time is over.
LOGGED_SECONDS = 1.0

FEWEST_FAILED = 3
FEWEST_TIMES = 100
SHARE = 0.01  # of failures more than elsewhere, and of answers slower than nearly all elsewhere
SLOWER = (1.5, 50)  # times the others' 99th percentile, and milliseconds more
DEVIATIONS = 3

ANSWERS = ("hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx")
# Of a server: no connection, no answer, and attempts that were repeated.
FAILURES = ("hrsp_5xx", "econ", "eresp", "wretr")


class RefusedError(Exception):
    """HAProxy does not do what it is told."""


class Figures:
    """What one host, or all others, did."""

    def __init__(self, requests: int = 0, failed: int = 0) -> None:
        self.requests = requests
        self.failed = failed
        self.times: list[int] = []  # sorted

    @property
    def p99_ms(self) -> int:
        """Return the 99th percentile of the times to an answer, by the nearest rank, -1 without any."""
        return self.times[-(-len(self.times) * 99 // 100) - 1] if self.times else -1

    def told(self) -> dict[str, int]:
        """Return the figures as the module tells them."""
        return {"requests": self.requests, "failed": self.failed, "p99_ms": self.p99_ms}


def explained(requests: int, share: float) -> float:
    """Return how many of some requests may be such as a share of all is, by chance."""
    share = min(share, 1.0)
    return requests * share + DEVIATIONS * math.sqrt(requests * share * (1 - share))


def failing(host: Figures, others: Figures) -> str:
    """Return why a host fails more than others, empty if it does not."""
    share = others.failed / max(others.requests, 1) + SHARE
    if host.failed < FEWEST_FAILED or host.failed <= explained(host.requests, share):
        return ""
    return f"{host.failed} of {host.requests} requests failed, elsewhere {others.failed} of {others.requests}"


def slow(host: Figures, others: Figures) -> str:
    """Return why a host is slower than others, empty if it is not."""
    times, more = SLOWER
    limit = times * others.p99_ms + more
    late = sum(time > limit for time in host.times)
    if min(len(host.times), len(others.times)) < FEWEST_TIMES or late <= explained(len(host.times), SHARE):
        return ""
    said = f"99 % of {len(host.times)} answers took {host.p99_ms} ms at most, elsewhere {others.p99_ms} ms"
    return f"{said}; {late} took more than {limit:.0f} ms"


class Edge:
    """The HAProxy of an edge host."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module

    def _ask(self, command: str) -> str:
        with closing(socket.socket(socket.AF_UNIX)) as line:
            line.settimeout(5)
            line.connect(SOCKET)
            line.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: line.recv(65536), b"")).decode().strip()

    def _tell(self, command: str) -> None:
        answer = self._ask(command)
        if answer:
            raise RefusedError(f"HAProxy refuses `{command}`: {answer}")

    def _servers(self) -> list[dict[str, str]]:
        """Return the statistics of each host in each backend, without those that are the last resort."""
        rows = csv.DictReader(io.StringIO(self._ask("show stat").removeprefix("# ")))
        return [row for row in rows if row.get("type") == "2" and not row["svname"].endswith("-unasked")]

    def _of(self, service: str) -> list[dict[str, str]]:
        # A service's name has no underline: that ends it.
        return [row for row in self._servers() if row["pxname"].partition("_")[0] == service]

    def give(self, service: str, host: str, percent: int) -> None:
        """Give a host a share of a service's requests, and none beside that."""
        backends = [row["pxname"] for row in self._of(service) if row["svname"] == host]
        if not backends:
            raise RefusedError(f"this edge does not know {host} as a host of {service}")
        for backend in backends:
            self._tell(f"set server {backend}/{host} weight 0")
        known = {line.split()[1] for line in self._ask(f"show map {MAP}").splitlines() if line}
        self._tell(f"{'set' if service in known else 'add'} map {MAP} {service} {host}:{percent}")

    def end(self) -> bool:
        """Give all hosts their equal shares; return whether one had another."""
        tried = [f"{row['pxname']}/{row['svname']}" for row in self._servers() if row["uweight"] == "0"]
        shares = self._ask(f"show map {MAP}")
        if shares.startswith("Unknown map"):
            # It was just told to read its configuration, and still answers by one that had no such map: the package's, at first.
            shares = ""
        if not self._module.check_mode:
            for server in tried:
                self._tell(f"set server {server} weight 100%")
            if shares:
                self._tell(f"clear map {MAP}")
        return bool(tried or shares)

    def counted(self, services: list[str], host: str) -> tuple[Figures, Figures]:
        """Return what the host and the others did since HAProxy started, without times."""
        found = (Figures(), Figures())
        for row in (row for service in services for row in self._of(service)):
            figures = found[row["svname"] != host]
            count = {name: int(row.get(name) or 0) for name in (*ANSWERS, *FAILURES)}
            figures.failed += sum(count[name] for name in FAILURES)
            figures.requests += sum(count[name] for name in {*ANSWERS, *FAILURES})
        return found

    def times(self, services: list[str], host: str, since: float) -> tuple[list[int], list[int]]:
        """Return the times to an answer, in milliseconds, of the host's requests and of the others', from the log."""
        journal = ["journalctl", "--unit=haproxy", "--output=cat", "--no-pager", f"--since=@{since:.6f}"]
        _, out, _ = self._module.run_command(journal, check_rc=True)
        found: tuple[list[int], list[int]] = ([], [])
        for line in out.splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if not isinstance(said, dict):
                continue
            service, _, way = str(said.get("backend", "")).partition("_")
            # A route without a time-out is for streams: theirs begin when there is something to say.
            if service in services and not way.startswith("0_") and said.get("response_ms", -1) >= 0:
                found[str(said["server"]).removesuffix("-unasked") != host].append(said["response_ms"])
        return found


def tried(edge: Edge, params: dict[str, Any]) -> dict[str, Any]:
    """Return what came of a share."""
    services, host = params["services"], params["host"]
    for service in services:
        edge.give(service, host, params["percent"])
    began, before = time.time(), edge.counted(services, host)
    until = time.monotonic() + params["seconds"]

    def seen() -> list[Figures]:
        now = edge.counted(services, host)
        return [
            Figures(after.requests - then.requests, after.failed - then.failed)
            for then, after in zip(before, now, strict=True)
        ]

    figures = seen()
    while not failing(*figures) and (left := until - time.monotonic()) > 0:
        time.sleep(min(POLL_SECONDS, left))
        figures = seen()
    reason = failing(*figures)
    if not reason and params["seconds"]:
        time.sleep(LOGGED_SECONDS)
        for found, times in zip(figures, edge.times(services, host, began), strict=True):
            found.times = sorted(times)
        reason = slow(*figures)
    if reason:
        for service in services:
            edge.give(service, host, 0)
    return {"host": figures[0].told(), "others": figures[1].told(), "reason": reason}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["tried", "ended"], "required": True},
            "services": {"type": "list", "elements": "str", "default": []},
            "host": {"type": "str", "default": ""},
            "percent": {"type": "int", "default": 0},
            "seconds": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    os.nice(10)  # this host answers users meanwhile
    edge, params = Edge(module), module.params
    try:
        if params["state"] == "ended":
            module.exit_json(changed=edge.end())
        if module.check_mode:
            module.exit_json(changed=True, host={}, others={}, reason="")
        module.exit_json(changed=True, **tried(edge, params))
    except (OSError, RefusedError) as error:
        module.fail_json(msg=f"The shares of hosts are not as they should be: {error}")


if __name__ == "__main__":
    main()
