"""SLO: for each objective of slo.yml what is left of its budget, and how fast it burns."""

from decimal import Decimal

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards import slo as levels
from dashboards.frame import Row, sheet
from dashboards.look import Query
from dashboards.slo import Levels, Objective


def dashboard() -> Dashboard:
    """Return the dashboard."""
    found = levels.load()
    rows = [
        Row(
            f"{objective.name.capitalize()}: {objective.wanted} % of the {objective.promise}",
            [left(objective), kept(objective, found), rate(objective, found), missed(objective), events(objective)],
        )
        for objective in found.objectives
    ]
    return sheet(
        "slo",
        f"What users are promised over {found.days} days, what is left of the errors that this allows, and how fast they come.",
        [Row("Budgets", [budgets(found)]), *rows],
        down=["orders", "edge", "service"],
    )


def _of(objective: Objective) -> str:
    return f'{{slo="{objective.name}"}}'


def budgets(found: Levels) -> Panel:
    return look.lines(
        "What is left of the budgets",
        f"1 is all of what {found.days} days allow, 0 nothing; below, the promise is broken.",
        Query("slo:budget_left:ratio", "{{slo}}"),
        unit=look.RATIO,
        limits=look.BUDGET_LEFT,
        width=look.COLUMNS,
        most=1,
        least=None,
    )


def left(objective: Objective) -> Panel:
    return look.number(
        "Budget left",
        f"Of the {objective.allowed} that may be missed.",
        Query(f"slo:budget_left:ratio{_of(objective)}"),
        unit=look.RATIO,
        limits=look.BUDGET_LEFT,
    )


def kept(objective: Objective, found: Levels) -> Panel:
    return look.number(
        f"Kept, {found.days} days",
        f"Of all that counts; {objective.wanted} % is promised. Measured {objective.measured}.",
        Query(f"1 - slo:errors:ratio_rate{found.days}d{_of(objective)}"),
        unit=look.RATIO,
        limits=look.steps(look.BAD, (float(objective.percent / 100), look.GOOD)),
    )


def rate(objective: Objective, found: Levels) -> Panel:
    return look.lines(
        "How fast the budget burns",
        "1: it would just last. An alert fires where a window is above its factor: "
        + ", ".join(f"{burn.long} at {burn.factor(found.days).normalize():f}" for burn in levels.BURNS)
        + ".",
        *(
            Query(f"slo:errors:ratio_rate{burn.long}{_of(objective)} / {objective.budget}", burn.long)
            for burn in levels.BURNS
        ),
        unit=look.COUNT,
        limits=look.steps(look.GOOD, *_factors(found)),
    )


def _factors(found: Levels) -> list[tuple[float, str]]:
    colors = (look.WATCH, look.WATCH, look.BAD)
    factors: list[Decimal] = sorted(burn.factor(found.days) for burn in levels.BURNS)
    return [(float(factor), color) for factor, color in zip(factors, colors, strict=True)]


def missed(objective: Objective) -> Panel:
    return look.lines(
        "Missed",
        f"Share of all within 5 and 30 minutes; {objective.allowed} may be.",
        Query(f"slo:errors:ratio_rate5m{_of(objective)}", "5m"),
        Query(f"slo:errors:ratio_rate30m{_of(objective)}", "30m"),
        unit=look.RATIO,
        width=4,
    )


def events(objective: Objective) -> Panel:
    return look.lines(
        "Counted",
        "All that counts, and what was missed of it.",
        Query(f"slo:events:rate5m{_of(objective)}", "all"),
        Query(f"slo:errors:rate5m{_of(objective)}", "missed"),
        unit=look.RATE,
        width=4,
    )
