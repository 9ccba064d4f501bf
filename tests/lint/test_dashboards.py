"""Dashboards and the rules of service levels are what their sources give, read well, and ask for what exists."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import making, slo
from tests.support import panels

ROOT = Path(__file__).resolve().parent.parent.parent
BOARDS = panels.load()
# Names that a lab's Prometheus had. tests/system/test_dashboards.py sees that those in use are still there.
KNOWN = {
    line
    for line in (ROOT / "tests/lint/figures.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
}
RECORDED = {rule["record"] for rule in panels.rules() if "record" in rule}
# Prometheus makes them itself of alerts.
MADE = {"ALERTS", "ALERTS_FOR_STATE"}
COLUMNS = 24
# On 1280 pixels a column is some 50 wide, and a letter of a title some 8.
LETTERS_A_COLUMN = 6
NARROWEST = {"timeseries": 4, "stat": 4, "bargauge": 6, "state-timeline": 8, "table": 6, "logs": 24}


def test_what_is_built_is_committed() -> None:
    """`make dashboards` would change nothing."""
    assert [str(path.relative_to(ROOT)) for path in making.outdated()] == [], (
        "run `make dashboards` and commit what it wrote"
    )


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_of_the_sdks_schema(name: str) -> None:
    """Read by the SDK's own classes and written again it is the same: no field is unknown, none of another kind."""
    register_default_plugins()
    again = json.loads(json.dumps(Dashboard.from_json(BOARDS[name]), cls=JSONEncoder))
    for link in again["links"]:
        del link["placement"]  # of which it knows one alone
    assert again == BOARDS[name]


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_found_by_its_name_and_leads_on(name: str) -> None:
    """Its address is its file's name, and its links and its panels' lead to dashboards that there are."""
    board = BOARDS[name]
    assert board["uid"] == f"freehold-{name}"
    links = [*board["links"], *(link for panel in panels.panels(board) for link in panel.get("links", []))]
    assert [link["url"] for link in links if link["url"].removeprefix("/d/freehold-") not in BOARDS] == []
    assert name == "overview" or board["links"][0]["url"] == "/d/freehold-overview"
    assert all(link["includeVars"] and link["keepTime"] for link in links)


def test_every_dashboard_is_reached_from_the_overview() -> None:
    """By its own links and those of the dashboards that they lead to."""
    reached, new = set[str](), {"overview"}
    while new:
        reached |= new
        new = {link["url"].removeprefix("/d/freehold-") for name in new for link in BOARDS[name]["links"]} - reached
    assert reached == set(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_panels_are_read_at_1280_pixels(name: str) -> None:
    """Inside the grid, none on another, wide enough for what they show and for their titles."""
    board = BOARDS[name]
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        for cell in (
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]
        if panel["type"] != "row":
            assert place["w"] >= NARROWEST[panel["type"]], panel["title"]
            assert len(panel["title"]) <= place["w"] * LETTERS_A_COLUMN, panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("name", BOARDS)
def test_a_panel_says_what_it_shows(name: str) -> None:
    """Each has a text for who does not know it, a title of its own, and a unit."""
    found = panels.panels(BOARDS[name])
    assert [panel["title"] for panel in found if not panel.get("description", "").endswith(".")] == []
    of_figures = [panel for panel in found if panel["type"] != "logs"]
    assert [panel["title"] for panel in of_figures if not panel["fieldConfig"]["defaults"].get("unit")] == []


@pytest.mark.parametrize("name", BOARDS)
def test_units_and_colours_are_of_one_module(name: str) -> None:
    """What means the same looks the same: a sheet has none of its own, but for the limits that slo.yml gives."""
    sheet = (ROOT / "dashboards" / "sheets" / f"{name}.py").read_text(encoding="utf-8")
    assert "grafana_foundation_sdk.builders" not in sheet
    assert name == "slo" or "look.steps(" not in sheet
    assert re.findall(r"\b(?:unit|limits|words)=(?![~]|look\.)\S+", sheet) == []


@pytest.mark.parametrize("name", BOARDS)
def test_a_panel_asks_for_what_exists(name: str) -> None:
    """Every figure of every query, and of each mark, is one that the platform gives or a rule records; nothing is made up where there is none."""
    board = BOARDS[name]
    asks = [*panels.queries(board), *(panels.Asked(*mark) for mark in panels.marks(board).items())]
    unknown = {
        asked.panel: sorted(names)
        for asked in asks
        if (names := panels.figures(asked.expr, KNOWN | RECORDED | MADE) - KNOWN - RECORDED - MADE)
    }
    assert unknown == {}
    assert [asked.panel for asked in asks if re.search(r"\bvector\s*\(|\babsent", asked.expr)] == []


@pytest.mark.parametrize("name", BOARDS)
def test_a_variable_is_used_and_has_values(name: str) -> None:
    """Those that are chosen among are of figures that exist; a choice that changes nothing would mislead."""
    board = BOARDS[name]
    exprs = [target["expr"] for panel in panels.panels(board) for target in panel["targets"]]
    for choice in panels.choices(board):
        assert any(f"${choice.name}" in expr for expr in exprs), choice
        assert panels.figures(choice.figure, KNOWN | RECORDED) <= KNOWN | RECORDED | {"up"}, choice


def test_rules_and_alerts_ask_for_what_exists() -> None:
    """Every figure of every rule; a pattern of names has one at least."""
    unknown = {}
    for rule in panels.rules():
        names = panels.figures(rule["expr"], KNOWN | RECORDED | MADE)
        if missing := names - KNOWN - RECORDED:
            unknown[rule.get("record") or rule["alert"]] = sorted(missing)
        assert names or rule["expr"].startswith("vector("), rule
    assert unknown == {}


@pytest.mark.parametrize(
    "rule", [rule for rule in panels.rules() if "alert" in rule], ids=lambda rule: str(rule["alert"])
)
def test_an_alert_leads_to_a_dashboard(rule: dict[str, Any]) -> None:
    """By its whole address, of which Prometheus knows the beginning; a host that it names is one of the dashboard's."""
    path, _, choice = rule["annotations"]["dashboard"].partition("?")
    name = path.removeprefix("{{ $externalLabels.grafana }}/d/freehold-")
    assert name in BOARDS
    if choice:
        assert choice == "var-host={{ $labels.instance }}"
        assert "host" in [variable.name for variable in panels.choices(BOARDS[name])]


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        (
            'sum by (code) (rate(a_total{proxy="b", x=~"c|d"}[5m])) / on (instance) group_left () job:b:rate5m > 0',
            {"a_total", "job:b:rate5m"},
        ),
        ("max by (instance) (a == 1) and b or (c * 0)", {"a", "b", "c"}),
        ('label_replace(sum(up) - time(), "part", "$1", "x", "(.+)")', {"up"}),
        ('{__name__=~"a_(x|y)"} > 1e3', {"a_x"}),
    ],
)
def test_names_of_figures_are_found(expr: str, names: set[str]) -> None:
    """In expressions of the kinds that are used here."""
    assert panels.figures(expr, {"a_x", "a_z", "b_x"}) == names


def test_a_service_levels_alerts_are_the_workbooks() -> None:
    """Over 30 days: 2 % of the budget within an hour, 5 % within six, 10 % within three days."""
    assert [(burn.long, burn.short, burn.factor(30)) for burn in slo.BURNS] == [
        ("1h", "5m", Decimal("14.4")),
        ("6h", "30m", Decimal(6)),
        ("3d", "6h", Decimal(1)),
    ]


LEVELS = slo.load()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Not a word"}, "small letters"),
        ({"alert": "orders_late"}, "such as OrdersLatency"),
        ({"percent": Decimal(100)}, "nothing would be left"),
    ],
)
def test_an_objective_of_which_no_rule_can_be_made_is_refused(changes: dict[str, Any], words: str) -> None:
    """With the name of the entry."""
    with pytest.raises(ValueError, match=words):
        replace(LEVELS.objectives[0], **changes)


def test_a_file_of_service_levels_with_an_error_is_refused(tmp_path: Path) -> None:
    """A field that is unknown, one that is missing, a name that stands twice."""
    good = {field.name: str(getattr(LEVELS.objectives[0], field.name)) for field in fields(slo.Objective)}
    file = tmp_path / "slo.yml"
    for entries, error, words in (
        ([{**good, "window": "7d"}], TypeError, "window"),
        ([{name: value for name, value in good.items() if name != "good"}], TypeError, "good"),
        ([good, good], ValueError, "twice"),
    ):
        file.write_text(yaml.safe_dump({"days": 30, "objectives": entries}), encoding="utf-8")
        with pytest.raises(error, match=words):
            slo.load(file)
    file.write_text(yaml.safe_dump({"days": 30, "objectives": [good]}), encoding="utf-8")
    with pytest.raises(TypeError, match="least_missed"):
        slo.load(file)
