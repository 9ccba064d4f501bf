"""What dashboards, rules and alerts ask for is there: each query of each panel is answered, whatever is chosen."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from tests.support import ledger, panels, watch
from tests.support.orders import Load
from tests.support.site import Site, grafana_given

ROOT = Path(__file__).resolve().parent.parent.parent
BOARDS = panels.load()
OF_LOGS = {name for name, board in BOARDS.items() if panels.queries(board, "loki")}
# Up to the first heading of what a lab does not have, or not yet.
LISTED = (ROOT / "tests/lint/figures.txt").read_text(encoding="utf-8").partition("\n# Not ")[0]
KNOWN = [line for line in LISTED.splitlines() if not line.startswith("#")]
SKUS = ("DASHBOARDS-1", "DASHBOARDS-2")
RATE = 5
MOST_SECONDS = 900
# The rules of days are looked at every two minutes, and rates want two scrapes before that.
RECORDED_SECONDS = 180
# A label's values and the lines of logs are those of so long.
RECENT_SECONDS = 300
# A lab's labels have some forty values, each for two panels: many more would be a label that grows.
MOST_QUERIES = 300
LOKI_SECONDS = 60


@pytest.fixture(scope="module")
def busy(site: Site) -> Iterator[None]:
    """Have orders come in and be read while panels are looked at: a time of no order is no figure."""
    ledger.stock_up(site, SKUS)
    load = Load(site, SKUS, rate=RATE, most_seconds=MOST_SECONDS, name="dashboards")
    with load.running():
        yield


def read(site: Site) -> None:
    """Log in and ask for the catalogue, as nobody does who places orders."""
    assert site.token()
    context = ssl.create_default_context(cafile=str(site.authority))
    with httpx.Client(base_url=site.url, verify=context, timeout=10, trust_env=False) as client:
        assert client.get("/v1/products").status_code == httpx.codes.OK


def values(site: Site, choice: panels.Choice, chosen: Mapping[str, str]) -> list[str]:
    """Return what a variable offers after the choices before it."""
    asked = {"match[]": panels.filled(choice.figure, chosen), "start": time.time() - RECENT_SECONDS}
    found: list[str] = watch.ask(site, f"label/{choice.label}/values?{urlencode(asked)}")
    return found


def selections(site: Site, choices: Sequence[panels.Choice]) -> list[dict[str, str]]:
    """Return all choices of everything, and each value of each variable, with everything that then is left of the others."""

    def rest(chosen: dict[str, str]) -> dict[str, str]:
        for choice in choices:
            if choice.name not in chosen:
                offered = values(site, choice, chosen)
                assert offered, f"${choice.name} has no value where {chosen} is chosen"
                chosen = {**chosen, choice.name: f"({'|'.join(offered)})"}
        return chosen

    found = [rest({})]
    for place, choice in enumerate(choices):
        before = {earlier.name: found[0][earlier.name] for earlier in choices[:place]}
        found += [rest({**before, choice.name: value}) for value in values(site, choice, before)]
    return found


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("name", sorted(set(BOARDS) - OF_LOGS))
def test_every_panel_shows_something(site: Site, name: str) -> None:
    """Each query, for every value of each variable, is answered with a series that has a value."""
    wanted = {
        (asked.panel, panels.filled(asked.expr, chosen))
        for chosen in selections(site, panels.choices(BOARDS[name]))
        for asked in panels.queries(BOARDS[name])
    }
    left = sorted(wanted)

    def empty() -> list[str]:
        nonlocal left
        read(site)
        answers = watch.queries(site, [expression for _, expression in left])
        left = [asked for asked, series in zip(left, answers, strict=True) if not watch.has_figure(series)]
        return [f"{panel}: {expression}" for panel, expression in left]

    watch.wait_for(empty, RECORDED_SECONDS, 10)


@pytest.mark.usefixtures("busy")
def test_every_figure_that_is_known_is_there(site: Site) -> None:
    """The list that the lint tier compares with is not older than the platform."""

    def missing() -> list[str]:
        return [name for name, series in zip(KNOWN, watch.queries(site, KNOWN), strict=True) if not series]

    watch.wait_for(missing, RECORDED_SECONDS, 10)


def lines(site: Site, path: str, asks: Sequence[Mapping[str, object]]) -> list[Any]:
    """Return what Loki answers on the first host that keeps logs to each question, asked in one go."""
    since = {"start": int(time.time()) - RECENT_SECONDS}
    address = f"127.0.0.1:3100/loki/api/v1/{path}"
    urls = "".join(f'url = "{address}?{urlencode({**asked, **since})}"\n' for asked in asks)
    printed = site.ask(site.groups["loki"][0], "curl -sS -m 10 -w '\\n' -K -", urls, seconds=LOKI_SECONDS)
    answers = [json.loads(line) for line in printed.splitlines() if line]
    for asked, answer in zip(asks, answers, strict=True):
        assert answer["status"] == "success", (asked, answer)
    return [answer["data"]["result"] for answer in answers]


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("name", sorted(OF_LOGS))
def test_every_panel_of_logs_shows_something(site: Site, name: str) -> None:
    """Each query, for all lines and for each value of each label that some of the last minutes have, finds one."""
    choices = panels.choices(BOARDS[name])
    labels = ", ".join(choice.label for choice in choices)
    # A minute less than what is looked at, so that none is too old by then.
    count = f'sum by ({labels}) (count_over_time({{host=~".+"}}[{RECENT_SECONDS - 60}s]))'
    (recent,) = lines(site, "query", [{"query": count}])
    everything = {"search": "", **{choice.name: choice.every for choice in choices}}
    chosen = [everything]
    for choice in choices:
        found = sorted({one["metric"][choice.label] for one in recent if choice.label in one["metric"]})
        assert found, choice.label
        chosen += [{**everything, choice.name: value} for value in found]
    exprs = sorted({panels.filled(asked.expr, one) for one in chosen for asked in panels.queries(BOARDS[name], "loki")})
    assert len(exprs) <= MOST_QUERIES
    answers = lines(site, "query_range", [{"query": expr, "limit": 1} for expr in exprs])
    assert [expr for expr, found in zip(exprs, answers, strict=True) if not found] == []


def test_replicas_that_started_are_marked(site: Site) -> None:
    """On every dashboard, each replica of the order service, at a time that has passed, in milliseconds."""
    asked = {panels.marks(board)["Replicas started"] for board in BOARDS.values()}
    for series in watch.queries(site, sorted(asked)):
        found = {(one["metric"]["service"], one["metric"]["instance"]) for one in series}
        assert found == {(service, host) for service in ("orders-api", "orders-worker") for host in site.groups["app"]}
        started = [float(one["value"][1]) / 1000 for one in series]
        assert [at for at in started if not time.time() - 365 * 86400 < at < time.time() + 5] == []


@pytest.mark.usefixtures("busy")
def test_a_run_is_marked_where_it_began(site: Site) -> None:
    """On the dashboard Tests: the line that the load of these tests wrote is found."""
    mark = panels.marks(BOARDS["tests"], "loki")["Runs"]

    def missing() -> list[str]:
        (streams,) = lines(site, "query_range", [{"query": mark, "limit": 20}])
        found = [stream["stream"] for stream in streams]
        begun = [one for one in found if one.get("run", "").startswith("dashboards-") and one.get("phase") == "begins"]
        return [] if begun else [f"{mark}: {found}"]

    watch.wait_for(missing, 10)


@pytest.fixture
def grafana(site: Site) -> str:
    """Return the first host with Grafana; skips where no source gave the program."""
    if not grafana_given(site):
        pytest.skip("Grafana is not to be had: set FREEHOLD_ARTIFACTS to a folder that has it (docs/observability.md)")
    return site.groups["grafana"][0]


def test_grafana_has_all_dashboards_and_reaches_its_data(site: Site, grafana: str) -> None:
    """It loads each dashboard, and each data source answers it."""
    admin = '$(sudo sed -n \'s/^admin_password = "*\\([^"]*\\)"*$/\\1/p\' /etc/grafana/grafana.ini)'
    curl = f'curl -fsS -m 10 -u "admin:{admin}" http://127.0.0.1:3000/grafana/api'
    for name, board in BOARDS.items():
        found = json.loads(site.ask(grafana, f"{curl}/dashboards/uid/freehold-{name}"))
        assert found["dashboard"]["title"] == board["title"]
        assert found["meta"]["provisioned"]
    for source in ("prometheus", "loki", "jaeger"):
        said = json.loads(site.ask(grafana, f"{curl}/datasources/uid/{source}/health"))
        assert said["status"] == "OK", said


def test_grafana_wants_a_log_in_by_keycloak(site: Site, grafana: str) -> None:
    """By the edge's address; what it knows is given to nobody else."""
    context = ssl.create_default_context(cafile=str(site.authority))
    with httpx.Client(base_url=site.url, verify=context, timeout=10, trust_env=False) as client:
        assert client.get("/grafana/api/search").status_code == httpx.codes.UNAUTHORIZED, grafana
        led = client.get("/grafana/login/generic_oauth")
    assert led.status_code == httpx.codes.FOUND
    assert led.headers["Location"].startswith(f"{site.issuer}/protocol/openid-connect/auth?")
