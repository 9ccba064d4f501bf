"""What is built of all this: the dashboards' JSON, the rule file of service levels, the README's table of objectives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import slo
from dashboards.sheets import (
    autoscaling,
    capacity,
    edge,
    etcd,
    hosts,
    logs,
    monitoring,
    orders,
    overview,
    pgbouncer,
    postgresql,
    rabbitmq,
    replicas,
    service,
    tests,
    valkey,
)
from dashboards.sheets import slo as slo_sheet

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "dashboards" / "build"
RULES = ROOT / "roles" / "prometheus" / "files" / "rules" / "slo.yml"
README = ROOT / "README.md"
BEGIN, END = "<!-- objectives: made by `make dashboards` -->\n", "<!-- end of objectives -->\n"

SHEETS: tuple[Callable[[], Dashboard], ...] = (
    overview.dashboard,
    slo_sheet.dashboard,
    edge.dashboard,
    service.dashboard,
    replicas.dashboard,
    autoscaling.dashboard,
    orders.dashboard,
    postgresql.dashboard,
    pgbouncer.dashboard,
    valkey.dashboard,
    rabbitmq.dashboard,
    etcd.dashboard,
    hosts.dashboard,
    capacity.dashboard,
    monitoring.dashboard,
    logs.dashboard,
    tests.dashboard,
)


def sheets() -> dict[str, Dashboard]:
    """Return all dashboards by the name of their file."""
    return {str(made.uid).removeprefix("freehold-"): made for made in (make() for make in SHEETS)}


def text(made: Dashboard) -> str:
    """Return a dashboard as Grafana reads it."""
    board = json.loads(json.dumps(made, cls=JSONEncoder))
    for link in board["links"]:
        # The SDK knows no other place than a menu; where none is named, links are above the panels.
        del link["placement"]
    return json.dumps(board, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def wanted() -> dict[Path, str]:
    """Return each file that is built, with what should be in it; raises ValueError where the README has no place for the table."""
    levels = slo.load()
    files = {BUILT / f"{name}.json": text(made) for name, made in sheets().items()}
    readme = README.read_text(encoding="utf-8")
    if BEGIN not in readme or END not in readme:
        raise ValueError(
            f"{README.name} has no lines {BEGIN.strip()!r} and {END.strip()!r} for the table of objectives"
        )
    before, _, rest = readme.partition(BEGIN)
    return {
        **files,
        RULES: slo.rules(levels),
        README: before + BEGIN + slo.table(levels) + END + rest.partition(END)[2],
    }


def outdated() -> dict[Path, str | None]:
    """Return the files that differ from what should be in them, each with that; None stands for files of nothing any more."""
    files = wanted()
    gone: dict[Path, str | None] = {path: None for path in BUILT.glob("*") if path not in files}
    return gone | {path: said for path, said in files.items() if not path.exists() or path.read_text() != said}


def write() -> list[Path]:
    """Write what is outdated and return those paths."""
    changed = outdated()
    BUILT.mkdir(exist_ok=True)
    for path, said in changed.items():
        if said is None:
            path.unlink()
        else:
            path.write_text(said, encoding="utf-8")
    return list(changed)
