"""Service levels: from slo.yml the recording rules, the burn-rate alerts and the README's table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import yaml

SOURCE = Path(__file__).with_name("slo.yml")
DASHBOARD = "freehold-slo"
NOTE = "# Made by `make dashboards` from dashboards/slo.yml; change that."
# Rates over these are recorded from the events themselves, all longer ones from those records.
SHORTEST = "5m"


@dataclass(frozen=True)
class Burn:
    """An alert's two windows and the share of the whole period's budget that is gone when it fires."""

    suffix: str
    severity: str
    hours: int
    long: str
    short: str
    spent: Decimal

    def factor(self, days: int) -> Decimal:
        """Return how many times faster than allowed errors then come."""
        return self.spent * days * 24 / self.hours


# Source: The Site Reliability Workbook, chapter 5, table 5-8. The short window ends the alert soon after the fault.
BURNS = (
    Burn("BurnsFast", "critical", 1, "1h", "5m", Decimal("0.02")),
    Burn("BurnsSlow", "critical", 6, "6h", "30m", Decimal("0.05")),
    Burn("BurnsForDays", "warning", 72, "3d", "6h", Decimal("0.10")),
)
WORDS = {"1h": "an hour", "6h": "6 hours", "3d": "3 days"}


@dataclass(frozen=True)
class Objective:
    """One promise: of all events, so many percent are good."""

    name: str
    alert: str
    percent: Decimal
    promise: str
    missed: str
    measured: str
    events: str
    good: str

    def __post_init__(self) -> None:
        """Refuse what no rule could be made of; raises ValueError that names the entry."""
        if not re.fullmatch(r"[a-z][a-z_]*", self.name):
            raise ValueError(f"slo.yml: name {self.name!r} is no word of small letters")
        if not re.fullmatch(r"([A-Z][a-z]+)+", self.alert):
            raise ValueError(f"slo.yml: {self.name}: alert {self.alert!r} is no name such as OrdersLatency")
        if not 50 <= self.percent < 100:
            raise ValueError(f"slo.yml: {self.name}: percent is {self.percent}; of 100 nothing would be left to burn")

    @property
    def budget(self) -> Decimal:
        """The share of events that may be bad."""
        return 1 - self.percent / 100

    @property
    def wanted(self) -> str:
        """The percentage in words."""
        return _plain(self.percent)

    @property
    def allowed(self) -> str:
        """The budget in words."""
        return f"{_plain(self.budget * 100)} %"


@dataclass(frozen=True)
class Levels:
    """All promises, the days over which they are kept, and of how few misses nobody is told."""

    days: int
    least_missed: int
    objectives: tuple[Objective, ...]


def load(path: Path = SOURCE) -> Levels:
    """Return the service levels; raises ValueError or TypeError for what is none."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    objectives = [Objective(**{**entry, "percent": Decimal(str(entry["percent"]))}) for entry in found["objectives"]]
    names = [objective.name for objective in objectives]
    if len(set(names)) < len(names):
        raise ValueError(f"slo.yml: a name stands twice: {', '.join(names)}")
    return Levels(**{**found, "objectives": tuple(objectives)})


def rules(levels: Levels) -> str:
    """Return the rule file."""
    return "\n".join(["---", NOTE, "groups:", *_records(levels), *_alerts(levels)]) + "\n"


def _records(levels: Levels) -> Iterator[str]:
    yield "  - name: service levels"
    yield "    rules:"
    for objective in levels.objectives:
        label = f"{{slo: {objective.name}}}"
        events = f"sum(rate({objective.events}[{SHORTEST}]))"
        yield from _record("slo:objective:ratio", [f"vector({_plain(objective.percent / 100)})"], label)
        yield from _record(f"slo:events:rate{SHORTEST}", [events], label)
        # Where none is good there may be no such series: then all are bad, not none.
        good = [f"- (sum(rate({objective.good}[{SHORTEST}]))", f"or {events} * 0)"]
        yield from _record(f"slo:errors:rate{SHORTEST}", [events, *good], label)
    records = (f"slo:errors:rate{SHORTEST}", f"slo:events:rate{SHORTEST}")
    yield from _record(f"slo:errors:ratio_rate{SHORTEST}", [f"{records[0]} / ({records[1]} > 0)"])
    # The longer a window, the more it reads and the less it changes.
    for name, interval, windows in (
        ("long windows", "1m", ["30m", "1h", "6h"]),
        ("days", "2m", ["3d", f"{levels.days}d"]),
    ):
        yield f"  - name: service levels, {name}"
        yield f"    interval: {interval}"
        yield "    rules:"
        for window in windows:
            sums = [f"sum_over_time({record}[{window}])" for record in records]
            yield from _record(f"slo:errors:ratio_rate{window}", [f"{sums[0]} / ({sums[1]} > 0)"])
    left = f"1 - slo:errors:ratio_rate{levels.days}d / (1 - slo:objective:ratio)"
    yield from _record("slo:budget_left:ratio", [left])


def _record(name: str, expression: list[str], labels: str = "") -> Iterator[str]:
    yield f"      - record: {name}"
    if labels:
        yield f"        labels: {labels}"
    if len(expression) == 1:
        yield f"        expr: {expression[0]}"
        return
    yield "        expr: >-"
    yield from (f"          {line}" for line in expression)


def _alerts(levels: Levels) -> Iterator[str]:
    yield "  - name: service levels, alerts"
    yield "    rules:"
    for objective in levels.objectives:
        for burn in BURNS:
            limit = _plain(burn.factor(levels.days) * objective.budget)
            said = f"{{{{ $value | humanizePercentage }}}} of the {objective.missed}; {objective.allowed} may be."
            yield f"      - alert: {objective.alert}{burn.suffix}"
            yield "        expr: >-"
            yield f'          slo:errors:ratio_rate{burn.long}{{slo="{objective.name}"}} > {limit}'
            yield f'          and slo:errors:ratio_rate{burn.short}{{slo="{objective.name}"}} > {limit}'
            missed = (
                f'avg_over_time(slo:errors:rate{SHORTEST}{{slo="{objective.name}"}}[{burn.long}]) * {burn.hours * 3600}'
            )
            yield f"          and {missed} >= {levels.least_missed}"
            yield f"        labels: {{severity: {burn.severity}}}"
            yield "        annotations:"
            yield f'          summary: "Within {WORDS[burn.long]} {said}"'
            yield f'          dashboard: "{{{{ $externalLabels.grafana }}}}/d/{DASHBOARD}"'
            yield f"          runbook: docs/runbooks/{objective.alert}Burns.md"


def table(levels: Levels) -> str:
    """Return the README's table."""
    lines = [
        f"| service level | objective, over {levels.days} days | measured |",
        "|---|---|---|",
        *(f"| {o.name} | {o.wanted} % of the {o.promise} | {o.measured} |" for o in levels.objectives),
    ]
    return "\n".join(lines) + "\n"


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"
