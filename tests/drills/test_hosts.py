"""App hosts come and go by hand while orders come in, and nobody notices."""

from __future__ import annotations

import json
import os
import time

import pytest

from freehold.fleet import Fleet
from tests.support import deploys, health, ledger, watch
from tests.support.orders import Load
from tests.support.site import ROOT, Site

SKUS = ("HOSTS-1", "HOSTS-2")
SERVICE = "orders-api"
MOST_SECONDS = 480
SERVED_SECONDS = 60
FORGOTTEN_SECONDS = 30
WHOLE_SECONDS = 90
# Ansible's, where a host did not answer; all the others are as they should be.
UNREACHABLE = 4
REPORT = ROOT / "build" / "hosts.json"


def scaled(expected: int = 0, **variables: object) -> float:
    """Run scale.yml, which is to end with a status, and return how long it took; raises AssertionError with its last words."""
    started = time.monotonic()
    status, printed = deploys.scale(**variables)
    assert status == expected, printed[-4000:]
    return round(time.monotonic() - started, 1)


def requests(site: Site, host: str) -> float:
    """Return how many requests a host's replicas of the service had within seconds."""
    expression = f'sum(increase(freehold_replica_requests_total{{service="{SERVICE}", instance="{host}"}}[15s]))'
    found = watch.query(site, expression)
    return float(found[0]["value"][1]) if found else 0.0


@pytest.mark.skipif(not os.environ.get("FREEHOLD_FULL"), reason="takes four minutes: make test-full")
def test_an_app_host_comes_and_goes_and_no_order_fails(site: Site, rate: float) -> None:
    """The new one is in the zone that had none, takes requests, and has finished them before it goes without a trace."""
    ledger.stock_up(site, SKUS)
    declared = {host.name for host in site.lab.hosts()}
    # The controller works for minutes beside them, on the hosts' processors.
    load = Load(site, SKUS, rate=rate / 2, most_seconds=MOST_SECONDS, name="hosts")
    report: dict[str, object] = {}

    def events() -> None:
        report["come_s"] = scaled(app_hosts=3)
        (new,) = (host for host in site.lab.hosts() if host.name not in declared)
        assert (new.name, new.zone, new.running) == ("app3", "c", True)
        scaled(service=SERVICE, replicas=3)
        watch.wait_for(
            lambda: [] if requests(site, new.name) > 0 else [f"{new.name} takes no requests"], SERVED_SECONDS
        )
        report["go_s"] = scaled(app_hosts=2)

    load.during(events)
    REPORT.parent.mkdir(exist_ok=True)
    report |= {"failed": len(load.failed), "p99_ms": load.quantile_ms(0.99)}
    REPORT.write_text(json.dumps(report) + "\n", encoding="utf-8")
    assert not load.failed, load.complaint()
    assert ledger.check(site, load.accepted).faults == []
    assert {host.name for host in site.lab.hosts()} == declared
    assert Fleet(site.lab.state).hosts() == {}
    assert not (site.lab.state / "volumes" / "app3").exists()
    watched = 'up{instance="app3"} or ALERTS{instance="app3", alertstate="firing"}'
    watch.wait_for(lambda: [str(one["metric"]) for one in watch.query(site, watched)], FORGOTTEN_SECONDS)


@pytest.mark.skipif(not os.environ.get("FREEHOLD_FULL"), reason="takes four minutes: make test-full")
def test_hosts_that_do_not_answer_hold_up_nothing(site: Site) -> None:
    """A host comes while a declared one is dead, and one that died itself goes."""
    declared = {host.name for host in site.lab.hosts()}
    dead = site.groups["app"][0]
    site.lab.power_cut(dead)
    try:
        scaled(UNREACHABLE, app_hosts=3)
        assert site.lab.host("app3").running
        assert "orders-worker" in site.lab.ssh(site.lab.host("app3").address, "sudo podman ps --format '{{.Names}}'")
        site.lab.power_cut("app3")
        scaled(UNREACHABLE, app_hosts=2)
    finally:
        site.lab.power_on(dead)
    assert {host.name for host in site.lab.hosts()} == declared
    assert Fleet(site.lab.state).hosts() == {}
    health.wait_until_whole(site, WHOLE_SECONDS)
