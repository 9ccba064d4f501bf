"""`make logs`: lines of all hosts in the order of time, from Loki, or where none answers from each host's journal."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

from freehold import playbooks
from freehold.progress import console

LOKI = "http://127.0.0.1:3100/loki/api/v1/query_range"
MOST_LINES = 20000  # as many as Loki gives at once


class Wanted(NamedTuple):
    """Which lines: of a unit, of a host, with a text, since when; empty is all. The last ones, if they are more than `lines`."""

    service: str
    host: str
    since: str  # such as 15m
    text: str
    lines: int


def show(inventory: str, wanted: Wanted) -> None:
    """Print the lines that are wanted."""
    found = _from_loki(inventory, wanted)
    if found is None:
        found = _from_journals(inventory, wanted)
    for time, host, text in sorted(found, key=lambda line: line[0])[-wanted.lines :]:
        console.print(f"{time} {host} {text}", markup=False, highlight=False, soft_wrap=True)
    if not found:
        what = {"SERVICE": wanted.service, "HOST": wanted.host, "TEXT": wanted.text, "SINCE": wanted.since}
        asked = " ".join(f"{name}={value}" for name, value in what.items() if value)
        console.print(f"{asked}: no host has such a line.", markup=False)


def _from_loki(inventory: str, wanted: Wanted) -> list[tuple[str, str, str]] | None:
    """Return what the first Loki that answers has, as time, host and text; None where none does."""
    hosts = playbooks.variables(inventory, "all", "topology_loki_hosts")
    keepers = next(iter(hosts.values()))["topology_loki_hosts"] or []
    # Percent-encoded, so that nobody on the way takes a word of it for its own.
    question = urlencode({"query": _query(wanted), "since": wanted.since, "limit": wanted.lines})
    for keeper in keepers:
        said = playbooks.ask(inventory, keeper, "ansible.builtin.command", f"curl -sSf -m 30 '{LOKI}?{question}'")
        answer = said.get(keeper, {})
        if answer.get("unreachable") or answer.get("rc", 1):
            console.print(f"{keeper}: its Loki does not answer", markup=False)
            continue
        return _read(json.loads(answer["stdout"]))
    return None


def _query(wanted: Wanted) -> str:
    """Return the question in LogQL."""
    # A unit's label is without its instance, and a service of the platform has a prefix.
    unit, _, instance = wanted.service.removesuffix(".service").partition("@")
    labels = {"unit": f"(svc-)?{re.escape(unit)}.*" if unit else ".+", "host": re.escape(wanted.host) or ".+"}
    query = "{" + ", ".join(f"{name}=~{json.dumps(value)}" for name, value in labels.items()) + "}"
    query += f" |= {json.dumps(wanted.text)}" if wanted.text else ""
    return query + (f" | instance={json.dumps(instance)}" if instance else "")


def _read(answer: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return lines in their order, of those in one microsecond too."""
    found = []
    for stream in answer["data"]["result"]:
        labels = stream["stream"]
        unit = labels["unit"] + (f"@{labels['instance']}" if labels.get("instance") else "")
        found += [(int(nanoseconds), labels["host"], f"{unit}: {text}") for nanoseconds, text in stream["values"]]
    return [
        (datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC).isoformat(timespec="microseconds"), host, text)
        for nanoseconds, host, text in sorted(found, key=lambda line: line[0])
    ]


def _from_journals(inventory: str, wanted: Wanted) -> list[tuple[str, str, str]]:
    service = wanted.service
    # A service of the platform has a prefix.
    units = f" --unit={service}* --unit=svc-{service}*" if service else ""
    command = f"journalctl --no-pager --quiet --utc --output=short-iso-precise --since=-{wanted.since}{units}"
    # What is looked for is picked here: journalctl would take it for an expression.
    command += "" if wanted.text else f" --lines={wanted.lines}"
    said = playbooks.ask(inventory, wanted.host or "all", "ansible.builtin.command", command)
    found = []
    for host, answer in said.items():
        if answer.get("unreachable"):
            console.print(f"{host}: does not answer over SSH", markup=False)
        for line in answer.get("stdout_lines", []):
            time, _, rest = line.partition(" ")
            if wanted.text in rest:
                found.append((time, host, rest.partition(" ")[2]))
    return found
