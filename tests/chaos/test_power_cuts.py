"""One host after the other loses its power while orders come in; none that was accepted may be lost or count twice."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urlencode, urlsplit

import pytest

from tests.chaos.conftest import SKUS, WHOLE_SECONDS, Run, report
from tests.support import health, ledger, logs, panels, traces, watch
from tests.support.commands import freehold
from tests.support.orders import Attempt, Load
from tests.support.site import Site

BEFORE_SECONDS = 5
AFTER_SECONDS = 25
MOST_SECONDS = 180
SETTLE_SECONDS = 120
# What an order may take on one app host: an attempt of 300 ms at the dead one before it, then its own. On two processors that
# nine hosts share, a rare one waits longer for a processor; a dead host that is asked on would hold up every second one.
ALONE_SECONDS = 0.5
MOST_SLOW = 5
MOST_ALONE_SECONDS = 2
HEARD_SECONDS = 120
# What was written, or is asked of figures that were just scraped.
SEEN_SECONDS = 30


def cut_power(
    site: Site,
    host: str,
    rate: float,
    *,
    name: str,
    dark_seconds: float,
    keep_alive: bool = True,
    meanwhile: Callable[[], None] = lambda: None,
) -> Run:
    """Return what was seen while a host was without power for some seconds, and until all was whole again.

    `meanwhile` is done in the dark after these seconds, and adds to them.
    """
    load = Load(
        site,
        SKUS,
        rate=rate,
        most_seconds=MOST_SECONDS,
        name=f"chaos-{name}",
        keep_alive=keep_alive,
    )
    run = Run(name, "power cut", load)

    def events() -> None:
        time.sleep(BEFORE_SECONDS)
        run.cut = time.monotonic()
        site.lab.power_cut(host)
        run.dark = time.monotonic()
        time.sleep(dark_seconds)
        meanwhile()
        run.on = time.monotonic()
        site.lab.power_on(host, wait=False)
        time.sleep(AFTER_SECONDS)

    run.load.during(events)
    # Asking all hosts costs as much as some hundred orders: not while their times are taken.
    health.wait_until_whole(site, WHOLE_SECONDS - (time.monotonic() - run.on))
    run.healed = time.monotonic()
    return run


def count(site: Site, run: Run) -> ledger.Verdict:
    """Return what `orders check` says after a run, and keep the figures."""
    load = run.load
    verdict = ledger.check(site, load.accepted, SETTLE_SECONDS)
    run.facts = {
        "rate": load.rate,
        "requests": len(load.attempts),
        "failed": len(load.failed),
        "failed_posts": len(load.failed),
        "lost": verdict.count("accepted"),
        "doubled": verdict.count("once") + verdict.count("stock"),
        "faults": verdict.faults,
        "gap_s": round(load.gap(), 3),
        "p99_ms": load.quantile_ms(0.99),
        "slowest_ms": load.quantile_ms(1),
        "healed_s": round(run.healed - run.on, 1),
        "unaided": True,
    }
    return verdict


def first_failures(failed: list[Attempt], cut: float) -> list[tuple[float, int, str]]:
    """Return a few failures: seconds after the cut, status, words."""
    return [(round(attempt.intended - cut, 2), attempt.status, attempt.error) for attempt in failed[:5]]


@pytest.mark.usefixtures("shelves")
def test_host_of_the_database_primary(site: Site, rate: float) -> None:
    """Orders are taken as if nothing had happened; they settle when the database writes again."""
    run = cut_power(site, site.primary(), rate, name="postgres-primary", dark_seconds=30)
    verdict = count(site, run)
    run.facts["postgres_gap_s"] = round(ledger.outcome(site, run.load.name).longest_gap_seconds, 1)
    report(run)
    assert not run.load.failed, first_failures(run.load.failed, run.cut)
    assert verdict.faults == []


@pytest.mark.usefixtures("shelves")
def test_app_host(site: Site, rate: float) -> None:
    """The other app host takes every order within half a second while it is alone, but for a few that wait for a processor.

    The host's start, which takes from the processors that all hosts of a lab share, is no part of that.
    """
    host = site.groups["app"][0]
    run = cut_power(site, host, rate, name="app", dark_seconds=15)
    verdict = count(site, run)
    report(run)
    assert not run.load.failed, first_failures(run.load.failed, run.cut)
    assert verdict.faults == []
    alone = [attempt.seconds for attempt in run.load.attempts if attempt.intended < run.on]
    slow = [seconds for seconds in alone if seconds > ALONE_SECONDS]
    assert len(slow) <= MOST_SLOW, slow
    assert max(alone) <= MOST_ALONE_SECONDS


@pytest.mark.usefixtures("shelves")
def test_holder_of_the_virtual_address(site: Site, rate: float) -> None:
    """The other edge host has the address within two seconds; only what was on its way then may fail.

    Each order has a connection of its own: one from before ended with the host, which its client is told at once.
    """
    context = ssl.create_default_context(cafile=str(site.authority))
    with closing(http.client.HTTPSConnection(urlsplit(site.url).netloc, timeout=10, context=context)) as old:
        old.request("GET", "/v1/products")
        assert old.getresponse().read()
        run = cut_power(site, site.vip_holder(), rate, name="edge", dark_seconds=10, keep_alive=False)
        verdict = count(site, run)
        # From the cut until an order that was sent in the dark: a stall at another time is none of the address.
        until = min(attempt.ended for attempt in run.load.attempts if attempt.accepted and attempt.intended > run.dark)
        gone, back = run.load.gap_between(run.cut, until)
        run.facts["vip_gap_s"] = round(back - gone, 3)
        report(run)
        assert run.facts["vip_gap_s"] <= 2
        late = [attempt for attempt in run.load.failed if attempt.ended < gone or attempt.intended > back]
        assert not late, first_failures(late, run.cut)
        assert verdict.faults == []
        asked = time.monotonic()
        old.request("GET", "/v1/products")
        with pytest.raises(ConnectionError):
            old.getresponse()
        assert time.monotonic() - asked < 1


def unlit(site: Site, host: str, token: str) -> list[str]:
    """Return a complaint for each panel of the overview that one Prometheus alone leaves empty, and for a line that its Loki lacks."""
    asked = panels.queries(panels.load()["overview"])
    answers = watch.queries(site, [panels.filled(one.expr, {}) for one in asked], host)
    said = [
        f"{one.panel}: {one.expr}" for one, series in zip(asked, answers, strict=True) if not watch.has_figure(series)
    ]
    found = logs.lines(site, f'{{tier="data"}} |= "{token}"', host, asker=host)
    return said + ([] if len(found) == 1 else [f"Loki: {len(found)} lines with {token}"])


def uninhibited(site: Site, dead: str, host: str) -> list[str]:
    """Return a complaint for each alert that follows from a dead host and is not held back, or that there is none yet."""
    query = urlencode({"filter": f'instance="{dead}"'})
    address = f"https://{site.addresses[host]}:9093/api/v2/alerts?{query}"
    alerts = json.loads(site.ask(host, watch.curl("prometheus", address)))
    held = {(alert["labels"]["alertname"], bool(alert["status"]["inhibitedBy"])) for alert in alerts}
    free = [f"{name} is not held back" for name, inhibited in held if name != "HostDown" and not inhibited]
    return free + ([] if ("TargetDown", True) in held else ["no TargetDown is held back yet"])


@pytest.mark.usefixtures("shelves")
def test_ops_host(site: Site, rate: float, told: list[watch.Message]) -> None:
    """Orders notice nothing. The other ops host has figures, logs, traces and log-ins, and tells of the dead host, and of that alone."""
    host, other = site.groups["ops"]

    def heard() -> set[str]:
        alerts = [alert for message in told for alert in message["alerts"] if alert["status"] == "firing"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["labels"].get("instance") == host}

    def unheard() -> list[str]:
        return uninhibited(site, host, other) if "HostDown" in heard() else [f"of {host} only {heard()}"]

    def meanwhile() -> None:
        token = f"token-{uuid.uuid4().hex}"
        site.ask(site.groups["data"][-1], f"logger {token}")
        trace = traces.place_order(site, SKUS[0])
        assert {found["metric"]["instance"] for found in watch.query(site, "up{job='etcd'}", other)} == set(
            site.groups["etcd"]
        )
        watch.wait_for(lambda: unlit(site, other, token), SEEN_SECONDS)
        watch.wait_for(lambda: traces.unseen(site, trace, [other]), SEEN_SECONDS)
        assert f": {token}\n" in freehold("logs", "--text", token, "--since", "5m")
        watch.wait_for(unheard, HEARD_SECONDS, 1)
        assert heard() == {"HostDown"}

    run = cut_power(site, host, rate, name="ops", dark_seconds=10, meanwhile=meanwhile)
    verdict = count(site, run)
    report(run)
    assert not run.load.failed, first_failures(run.load.failed, run.cut)
    assert verdict.faults == []
