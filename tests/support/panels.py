"""What built dashboards ask: their panels' queries, their variables, and the names of figures in an expression."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
BUILT = ROOT / "dashboards" / "build"
RULES = ROOT / "roles" / "prometheus" / "files" / "rules"
# What Grafana makes of these with a scrape every 15 s, over an hour.
TIMES = {"$__rate_interval": "1m", "$__auto": "1m"}
_CLAUSE = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)"
_NAMED_BY = re.compile(r'__name__\s*=~\s*"((?:[^"\\]|\\.)*)"')
_WORDS = {
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "inf",
    "nan",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
}


@dataclass(frozen=True)
class Asked:
    """One query of one panel."""

    panel: str
    expr: str


@dataclass(frozen=True)
class Choice:
    """A variable: its name and the figure of whose series a label gives the values."""

    name: str
    figure: str
    label: str
    every: str


def load() -> dict[str, dict[str, Any]]:
    """Return the built dashboards by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(BUILT.glob("*.json"))}


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a dashboard's panels without the rows between them."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(board: Mapping[str, Any], source: str = "prometheus") -> list[Asked]:
    """Return what a dashboard's panels ask a kind of data source."""
    asked = [(panel, target) for panel in panels(board) for target in panel["targets"]]
    return [Asked(panel["title"], target["expr"]) for panel, target in asked if panel["datasource"]["type"] == source]


def traced(board: Mapping[str, Any]) -> list[str]:
    """Return what a dashboard's panels ask Prometheus with traces beside it."""
    return [target["expr"] for panel in panels(board) for target in panel["targets"] if target.get("exemplar")]


def marks(board: Mapping[str, Any], source: str = "prometheus") -> dict[str, str]:
    """Return what a dashboard asks a kind of data source for marks on its panels, by their names."""
    found = board["annotations"]["list"]
    return {mark["name"]: mark["expr"] for mark in found if mark["datasource"]["type"] == source}


def choices(board: Mapping[str, Any]) -> list[Choice]:
    """Return a dashboard's variables that have values, in their order."""
    found = []
    for variable in board["templating"].get("list", []):
        if variable["type"] != "query":
            continue
        match = re.fullmatch(r"label_values\((?:(.+), )?(\w+)\)", variable["query"])
        assert match, f"{board['title']}: {variable['name']} is not made of a label's values: {variable['query']}"
        found.append(Choice(variable["name"], match[1] or "", match[2], variable.get("allValue", "")))
    return found


def filled(expr: str, values: Mapping[str, str]) -> str:
    """Return an expression with all variables replaced, as Grafana does it."""
    for name, value in {**TIMES, **{f"${name}": value for name, value in values.items()}}.items():
        expr = expr.replace(name, value).replace("${" + name[1:] + "}", value)
    assert "$" not in expr, f"a variable is left in {expr}"
    return expr


def figures(expr: str, known: set[str]) -> set[str]:
    """Return the names of the figures that an expression reads; of a pattern, those known names that fit it."""
    names = {name for pattern in _NAMED_BY.findall(expr) for name in known if re.fullmatch(pattern, name)}
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    bare = re.sub(r"\{[^{}]*\}", " ", bare)
    bare = re.sub(r"\[[^\[\]]*\]", " ", bare)
    bare = re.sub(_CLAUSE, " ", bare)
    for match in re.finditer(r"(?<![\w:.$])[a-zA-Z_:][\w:]*", bare):
        followed = bare[match.end() :].lstrip()[:1]
        if match[0].lower() not in _WORDS and followed != "(":
            names.add(match[0])
    return names


def rules() -> Iterator[dict[str, Any]]:
    """Yield every rule of every file, those that record and those that alert."""
    for file in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]
