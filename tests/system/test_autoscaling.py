"""Replicas come with the load and go with it, and nobody notices."""

from __future__ import annotations

import json
import math
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml

from freehold import playbooks
from tests.support import ledger, watch
from tests.support.orders import Load
from tests.support.site import ROOT, Site

SERVICE = "orders-api"
SKUS = ("SCALE-1", "SCALE-2", "SCALE-3")
# As few as ask for one more: of a slow machine's two cores twenty a second, and two replicas that start, took more than there is.
LOW_RATE, MORE_RATE = 4, 8
CALM_SECONDS, HIGH_SECONDS, DOWN_SECONDS = 20, 40, 90
# From a load step to a new replica's first request, as Prometheus sees it up to four seconds later. The design's figure is 10; a
# start takes three times as long where all hosts share two slow cores.
REPLICA_SECONDS = 20
TAKEOVER_SECONDS = 15
HOSTILE = "/etc/prometheus/rules/hostile.yml"
REPORT = ROOT / "build" / "scale.json"
# As the platform's, but for its patience, and by what is the same on any machine.
POLICY = {
    "min": 2,
    "max": 4,
    "metrics": [{"name": "rate", "target": 4}],
    "up": {"window_seconds": 0, "step": 4, "pause_seconds": 5},
    "down": {"window_seconds": 15, "step": 4, "pause_seconds": 5},
}
SERVICES = "{{ [topology_order_services[0] | combine({'scaling': test_policy})] + topology_order_services[1:] }}"
RECORDED = f'max(freehold_replicas_recorded{{service="{SERVICE}"}})'
ALL_RECORDED = "count(freehold_replicas_recorded) + sum(freehold_replicas_recorded) + sum(freehold_hosts_recorded)"
READY = f'sum(freehold_replicas_ready{{service="{SERVICE}"}})'
DECISIONS = "sum(freehold_autoscaler_decisions_total)"
ACTIVE = "freehold_autoscaler_active == 1"
SERVED_BY_MORE = f'sum(increase(freehold_replica_requests_total{{service="{SERVICE}", replica!="1"}}[6s])) > 0'


def value(site: Site, expression: str, host: str = "") -> float:
    """Return what a Prometheus server answers, -1 for nothing."""
    found = watch.query(site, expression, host)
    return float(found[0]["value"][1]) if found else -1


def active(site: Site, host: str = "") -> str:
    """Return the host of the active autoscaler, "" for none."""
    return next((one["metric"]["instance"] for one in watch.query(site, ACTIVE, host)), "")


def first_rise(site: Site, expression: str, since: float) -> float:
    """Return when a figure first was more than at a time of the clock, as seen every second."""
    asked = {"query": expression, "start": since, "end": time.time(), "step": 1}
    series = watch.ask(site, f"query_range?{urlencode(asked)}")["result"]
    samples = [(float(at), float(count)) for one in series for at, count in one["values"]]
    before = next((count for at, count in samples if at < since + 1), 0.0)
    return next((at for at, count in samples if count > before), math.inf)


def scale(replicas: int | str, service: str = SERVICE) -> subprocess.CompletedProcess[str]:
    """Run ansible/scale.yml."""
    given = json.dumps({"service": service, "replicas": replicas})
    command = ["ansible-playbook", "-i", "inventories/lab", "-e", given, "ansible/scale.yml"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=playbooks.environment(), cwd=ROOT)


@pytest.fixture(scope="module")
def policy(site: Site) -> Iterator[None]:
    """Have the service follow the load more closely than it does otherwise, and be at its least before and after."""
    for role in ("prometheus", "autoscaler"):
        watch.configure(role, services=SERVICES, test_policy=POLICY)
    try:
        watch.wait_for(lambda: [] if value(site, RECORDED) == value(site, READY) == 2 else ["not at its least"], 60)
        yield
    finally:
        for role in ("prometheus", "autoscaler"):
            watch.configure(role)


def test_replicas_come_with_a_load_step_and_go_with_it_and_no_order_fails(site: Site, policy: None) -> None:
    """Nothing is decided while the load stays; then more take requests, and in the end as few as before, drained first."""
    ledger.stock_up(site, SKUS)
    low = Load(site, SKUS, rate=LOW_RATE, most_seconds=300, name="scale-low")
    more = Load(site, SKUS, rate=MORE_RATE, most_seconds=120, name="scale-more")
    with low.running():
        decided = value(site, DECISIONS)
        time.sleep(CALM_SECONDS)
        calm = value(site, DECISIONS)
        started = time.time()
        with more.running():
            # Nothing is asked meanwhile: that takes of the cores which the hosts share.
            time.sleep(HIGH_SECONDS)
        ended = time.monotonic()
        watch.wait_for(lambda: [] if value(site, READY) == 2 else ["replicas are left"], DOWN_SECONDS)
        fewer = time.monotonic()
        time.sleep(5)
    step = min(attempt.intended for attempt in more.attempts) + time.time() - time.monotonic()
    decided_at, served = first_rise(site, RECORDED, started), first_rise(site, SERVED_BY_MORE, started)
    grown = value(site, f"max_over_time(({RECORDED})[{int(time.time() - started)}s:1s])")
    failed = [(attempt.status, attempt.error) for attempt in low.failed + more.failed]
    scaled_in = [attempt for attempt in low.failed if attempt.ended > ended]
    verdict = ledger.check(site, low.accepted | more.accepted)
    report = {
        "decision_s": round(decided_at - step, 1),
        "replica_s": round(served - step, 1),
        "most_replicas": int(grown),
        "scale_in_s": round(fewer - ended, 1),
        "failed": len(failed),
        "lost": len(verdict.faults),
        "scale_in_failed": len(scaled_in),
        "p99_ms": {"low": low.quantile_ms(0.99), "more": more.quantile_ms(0.99)},
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    assert failed == []
    assert verdict.faults == []
    assert decided == calm
    assert value(site, DECISIONS) > calm
    assert grown > 2
    assert 0 < served - step <= REPLICA_SECONDS, report


def test_another_autoscaler_goes_on_where_the_active_one_ends(site: Site, policy: None) -> None:
    """What is asked for by hand stands a pause long; the next active one takes back what the load does not ask for."""
    watch.wait_for(lambda: [] if active(site) else ["nobody is active"], TAKEOVER_SECONDS)
    first = active(site)
    other = next(host for host in site.groups["autoscaler"] if host != first)
    site.ask(first, "sudo systemctl kill --signal=KILL freehold-autoscaler && sudo systemctl stop freehold-autoscaler")
    try:
        watch.wait_for(lambda: [] if active(site, other) == other else ["nobody is active"], TAKEOVER_SECONDS)
        asked = scale(4)
        assert asked.returncode == 0, asked.stdout
        assert value(site, RECORDED, other) in {4, 2}
        watch.wait_for(lambda: [] if value(site, RECORDED, other) == 2 else ["still more"], DOWN_SECONDS)
        said = site.ask(other, "sudo journalctl --unit=freehold-autoscaler --output=cat --lines=1")
        assert json.loads(said)["to"] == 2
    finally:
        site.ask(first, "sudo systemctl start freehold-autoscaler")


def test_a_hostile_name_in_a_metric_changes_nothing_and_is_logged(site: Site) -> None:
    """Neither a template nor a shell's text is more than a name, and a name counts only where it is a policy's."""
    watch.wait_for(lambda: [] if active(site) else ["nobody is active"], TAKEOVER_SECONDS)
    mark = f"/tmp/freehold-{uuid.uuid4().hex}"  # noqa: S108  (it is never made)
    name = f"{{{{ lookup('pipe', 'touch {mark}') }}}}; $(touch {mark})\n\"'`touch {mark}`"
    told = [
        {"record": "freehold:replicas_target", "expr": "vector(9)", "labels": {"service": name}},
        {"record": "freehold:hosts_target", "expr": "vector(9)", "labels": {"tier": name}},
    ]
    rules = yaml.safe_dump({"groups": [{"name": "hostile", "interval": "2s", "rules": told}]})
    hosts = site.groups["prometheus"]
    decided, recorded = value(site, DECISIONS), value(site, ALL_RECORDED)
    since = int(time.time())
    try:
        for host in hosts:
            site.ask(host, f"sudo tee {HOSTILE} > /dev/null && sudo systemctl reload prometheus", rules)
        journal = (
            f"sudo journalctl --unit=freehold-autoscaler --since=@{since} --output=cat --grep=unknown_service || true"
        )
        watch.wait_for(
            lambda: [] if site.ask(active(site), journal) else ["nothing is said of the name"], TAKEOVER_SECONDS
        )
        line = site.ask(active(site), journal).splitlines()[0]
        assert json.loads(line) == {"event": "failure", "kind": "unknown_service", "why": repr([name, name])}
        time.sleep(CALM_SECONDS)
        assert value(site, DECISIONS) == decided
        assert value(site, ALL_RECORDED) == recorded
        assert not Path(mark).exists()
        found = site.ask_all(site.addresses, f"ls {mark} 2>&1 || true")
        assert all("No such file" in str(said) for said in found.values()), found
    finally:
        for host in hosts:
            site.ask(host, f"sudo rm -f {HOSTILE} && sudo systemctl reload prometheus")


@pytest.mark.parametrize(
    ("service", "replicas", "says"),
    [
        (SERVICE, 99, "replicas is `99`; give a whole number of 2 to 6"),
        (SERVICE, "{{ 2 }}; reboot", "give a whole number of 2 to 6"),
        ("orders-worker", 3, "service is `orders-worker`; give one that has a policy, orders-api"),
    ],
)
def test_what_no_policy_allows_is_refused_in_words(site: Site, service: str, replicas: int | str, says: str) -> None:
    """Before anything changes."""
    asked = scale(replicas, service)
    assert asked.returncode != 0
    assert says in " ".join(asked.stdout.split())
