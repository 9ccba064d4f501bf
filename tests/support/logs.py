"""Lines of logs, asked of Loki as a Prometheus server's host may."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.support import watch
from tests.support.site import Site

PAGE = 20_000  # as many lines as Loki gives at once


class Line(NamedTuple):
    """One line as Loki has it."""

    nanoseconds: int
    labels: dict[str, str]
    text: str


def ask(site: Site, keeper: str, path: str, *, asker: str = "", **parameters: str | int) -> list[dict[str, Any]]:
    """Return what a Loki answers to a host, the first of Prometheus's where none is named."""
    address = f"https://{site.addresses[keeper]}:3100/loki/api/v1/{path}?{urlencode(parameters)}"
    command = f"{watch.curl('prometheus', address)} -m 30"
    said = json.loads(site.ask(asker or site.groups["prometheus"][0], command, seconds=35))
    found: list[dict[str, Any]] = said["data"]["result"]
    return found


def lines(site: Site, query: str, keeper: str = "", *, start: int = 0, asker: str = "") -> list[Line]:
    """Return the first lines since a time, else of the last hour, as many as one answer has, in their order."""
    since: dict[str, str | int] = {"start": start} if start else {"since": "1h"}
    keeper = keeper or site.groups["loki"][0]
    found = ask(site, keeper, "query_range", asker=asker, query=query, limit=PAGE, direction="forward", **since)
    several = [(stream["stream"], value) for stream in found for value in stream["values"]]
    return sorted((Line(int(time_), labels, text) for labels, (time_, text) in several), key=lambda line: line[0])
