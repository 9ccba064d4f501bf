"""Prometheus's answers, and a receiver of Alertmanager's messages that a test runs."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlencode

from freehold import playbooks
from tests.support.site import ROOT, HostError, Site

PKI = "/etc/freehold/pki"
Message = dict[str, Any]


def curl(identity: str, url: str) -> str:
    """Return the command with which a host asks for an address, showing one of its certificates."""
    return f"sudo curl -sS -m 5 --cacert {PKI}/ca.crt --cert {PKI}/{identity}.crt --key {PKI}/{identity}.key {shlex.quote(url)}"


def ask(site: Site, path: str, host: str = "") -> Any:  # noqa: ANN401
    """Return the `data` of an answer of Prometheus's API; raises HostError where there is none."""
    host = host or site.groups["prometheus"][0]
    said = json.loads(site.ask(host, curl("prometheus", f"https://{site.addresses[host]}:9090/api/v1/{path}")))
    if said["status"] != "success":
        raise HostError(f"{host}: {path}: {said}")
    return said["data"]


def query(site: Site, expression: str, host: str = "") -> list[dict[str, Any]]:
    """Return what a query gives now."""
    found: list[dict[str, Any]] = ask(site, f"query?{urlencode({'query': expression})}", host)["result"]
    return found


def queries(site: Site, expressions: Sequence[str], host: str = "") -> list[list[dict[str, Any]]]:
    """Return what each query gives now, asked in one go; raises HostError for one that is refused."""
    host = host or site.groups["prometheus"][0]
    address = f"https://{site.addresses[host]}:9090/api/v1/query"
    urls = "".join(f'url = "{address}?{urlencode({"query": expression})}"\n' for expression in expressions)
    identity = curl("prometheus", "").rsplit(" ", 1)[0]
    printed = site.ask(host, f"{identity} -w '\\n' -K -", urls, seconds=120)
    answers = [json.loads(line) for line in printed.splitlines()]
    for expression, answer in zip(expressions, answers, strict=True):
        if answer["status"] != "success":
            raise HostError(f"{expression}: {answer}")
    return [answer["data"]["result"] for answer in answers]


def exemplars(site: Site, expression: str, host: str = "") -> set[str]:
    """Return the traces that the series of an expression named within the last minutes."""
    asked = {"query": expression, "start": time.time() - 300, "end": time.time() + 60}
    found = ask(site, f"query_exemplars?{urlencode(asked)}", host)
    return {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}


def has_figure(series: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of them has a value that can be drawn."""
    return any(not math.isnan(float(one["value"][1])) for one in series)


def wait_for(what: Callable[[], list[str]], seconds: float, pause: float = 2) -> None:
    """Return when there is no complaint any more; raises AssertionError with those that are left."""
    give_up = time.monotonic() + seconds
    while complaints := what():
        if time.monotonic() > give_up:
            raise AssertionError("\n".join(complaints))
        time.sleep(pause)


@contextmanager
def receiver(site: Site) -> Iterator[tuple[str, list[Message]]]:
    """Give the address of a webhook on this machine that hosts reach, and the list that its messages are added to."""
    messages: list[Message] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test's output to itself."""

    address = f"{site.lab.prefix}.1"
    with ThreadingHTTPServer((address, 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{address}:{server.server_port}/", messages
        finally:
            server.shutdown()


def configure(role: str, **variables: object) -> None:
    """Converge a role alone on the group of its name, as site.yml does, with other variables.

    Raises AssertionError with what was printed.
    """
    inventory = os.environ.get("FREEHOLD_INVENTORY", "lab")
    included = ("-m", "ansible.builtin.include_role", "-a", f"name={role}")
    printed = subprocess.run(
        ["ansible", role, "-i", f"inventories/{inventory}", "-b", *included, "-e", json.dumps(variables)],
        capture_output=True,
        text=True,
        check=False,
        env=playbooks.environment(),
        cwd=ROOT,
    )
    assert printed.returncode == 0, printed.stdout + printed.stderr
