"""App hosts and read replicas come and go, by hand and with the load, while orders come in, and nobody notices."""

from __future__ import annotations

import itertools
import json
import math
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import yaml

from freehold import follow
from freehold.fleet import Fleet
from tests.support import deploys, health, ledger, watch
from tests.support import site as sites
from tests.support.orders import Load
from tests.support.site import ROOT, Site

SKUS = ("HOSTS-1", "HOSTS-2")
SERVICE = "orders-api"
MOST_SECONDS = 480
SERVED_SECONDS = 60
FORGOTTEN_SECONDS = 30
READ_PAUSE_SECONDS = 0.1
# A token is good for five minutes.
TOKEN_READS = 500
# Two minutes until the service's connections are made anew.
READ_SECONDS = 240
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


def first_request(site: Site, host: str, since: float) -> float:
    """Return when an edge first had an answer of a host, in seconds of the clock, as its log has it."""
    command = f'sudo journalctl --unit=haproxy --since=@{since:.0f} --output=short-unix --grep=\'"server": "{host}"\''
    said = site.ask_all(site.groups["edge"], f"{command} | head -n 1")
    return min(
        (float(line.split()[0]) for line in said.values() if isinstance(line, str) and line[:1].isdigit()),
        default=math.inf,
    )


def active(site: Site, host: str) -> bool:
    """Return whether a host's autoscaler is the active one."""
    return "freehold_autoscaler_active 1\n" in site.ask(host, "curl -sS http://127.0.0.1:9109/")


REQUESTS = f'freehold_replica_requests_total{{service="{SERVICE}", instance="%s"}}[15s]'
DOWN = 'up{instance="replica1"} == 0'
QUERIES = 'pgbouncer_stats_queries_pooled_total{database="orders", instance="%s"}[1m]'


def lately(site: Site, counted: str, host: str) -> float:
    """Return by how much a host's figure grew: requests that its replicas of the service had, or queries that its pooler passed on."""
    found = watch.query(site, f"sum(increase({counted % host}))")
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
            lambda: [] if lately(site, REQUESTS, new.name) > 0 else [f"{new.name} takes no requests"], SERVED_SECONDS
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


class Reads:
    """Somebody who reads his orders and searches the catalogue, again and again, while a block lasts."""

    def __init__(self, site: Site) -> None:
        """Say of whom."""
        self._site = site
        self._end = threading.Event()
        self.answers = 0
        self.failed: list[str] = []

    def _read(self) -> None:
        context = ssl.create_default_context(cafile=str(self._site.authority))
        with httpx.Client(base_url=self._site.url, verify=context, timeout=10, trust_env=False) as client:
            # Each search is another one: what is asked for twice within a second is answered from memory.
            for number in itertools.count():
                if self._end.wait(READ_PAUSE_SECONDS):
                    return
                if number % TOKEN_READS == 0:
                    client.headers["Authorization"] = f"Bearer {self._site.token()}"
                path = "/v1/orders" if number % 2 else f"/v1/products?q=hosts-{number}"
                try:
                    answer = client.get(path)
                except httpx.HTTPError as error:
                    self.failed.append(f"{path}: {error!r}")
                    continue
                self.answers += 1
                if answer.status_code != httpx.codes.OK:
                    self.failed.append(f"{path}: {answer.status_code} {answer.text[:200]}")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Read until the block ends."""
        thread = threading.Thread(target=self._read)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()


@pytest.mark.skipif(not os.environ.get("FREEHOLD_FULL"), reason="takes six minutes: make test-full")
def test_a_read_replica_comes_and_goes_and_no_request_fails(site: Site, rate: float) -> None:
    """It copies the primary, is read from, never leads, and has ended its queries before it goes without a trace."""
    ledger.stock_up(site, SKUS)
    declared = {host.name for host in site.lab.hosts()}
    load = Load(site, SKUS, rate=rate / 2, most_seconds=MOST_SECONDS, name="replicas")
    reads = Reads(site)
    report: dict[str, object] = {}

    def events() -> None:
        report["come_s"] = scaled(postgres_replicas=1)
        (new,) = (host for host in site.lab.hosts() if host.name not in declared)
        assert (new.name, new.running) == ("replica1", True)
        health.wait_until_whole(sites.load(), WHOLE_SECONDS)
        watch.wait_for(
            lambda: [] if lately(site, QUERIES, new.name) > 0 else [f"nothing is read from {new.name}"], READ_SECONDS
        )
        watch.wait_for(lambda: [str(one["metric"]) for one in watch.query(site, DOWN)], FORGOTTEN_SECONDS)
        told = subprocess.run(
            [sys.executable, "-m", "freehold", "status"], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert new.name in told.stdout, told.stderr
        assert f"wrong: {new.name}" not in told.stdout, told.stdout
        report["go_s"] = scaled(postgres_replicas=0)

    with reads.running():
        load.during(events)
    REPORT.parent.mkdir(exist_ok=True)
    report |= {"failed": len(load.failed), "p99_ms": load.quantile_ms(0.99), "read": reads.answers}
    REPORT.with_name("replicas.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    assert not load.failed, load.complaint()
    assert not reads.failed, reads.failed[:5]
    assert ledger.check(site, load.accepted).faults == []
    assert {host.name for host in site.lab.hosts()} == declared
    assert Fleet(site.lab.state).hosts() == {}
    assert not (site.lab.state / "volumes" / "replica1").exists()
    watched = 'up{instance="replica1"} or ALERTS{instance="replica1", alertstate="firing"}'
    watch.wait_for(lambda: [str(one["metric"]) for one in watch.query(site, watched)], FORGOTTEN_SECONDS)
    health.wait_until_whole(site, WHOLE_SECONDS)


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


@pytest.mark.skipif(not os.environ.get("FREEHOLD_FULL"), reason="takes eight minutes: make test-full")
def test_a_host_that_waits_is_taken_in_and_waits_again_afterwards(site: Site) -> None:
    """Before a new one is made; it keeps its disks and gives up all services."""
    spare = "spare1"
    file = ROOT / "inventories/lab/zz_drill.yml"
    variables = yaml.safe_load((ROOT / "inventories/lab/group_vars/app.yml").read_text(encoding="utf-8"))
    variables |= {"zone": "c", "address": f"{site.lab.prefix}.100", "fleet_tier": "app"}
    file.write_text(yaml.safe_dump({"all": {"children": {"standby": {"hosts": {spare: variables}}}}}), encoding="utf-8")

    def containers() -> str:
        return site.lab.ssh(site.lab.host(spare).address, "sudo podman ps --format '{{.Names}}'")

    try:
        deploys.make_hosts(spare)
        for _ in range(2):
            recap, _, printed = deploys.converge()
            assert all(host.failed == 0 for host in recap.values()), printed[-4000:]
        assert {name for name, host in recap.items() if host.changed} == set(), printed
        scaled(app_hosts=3)
        assert added(site) == {spare: "present"}
        assert "orders-worker" in containers()
        scaled(app_hosts=2)
        assert added(site) == {}
        assert containers().strip() == ""
    finally:
        file.unlink()
        site.lab.down(spare)
        deploys.converge()


# As the lab's, but for its patience, and by what is the same on any machine.
REPLICAS = {
    "min": 2,
    "max": 3,
    "metrics": [{"name": "rate", "target": 4}],
    "up": {"pause_seconds": 5},
    "down": {"window_seconds": 30, "step": 4, "pause_seconds": 5},
}
SERVICES = "{{ [topology_order_services[0] | combine({'scaling': drill_policy})] + topology_order_services[1:] }}"
LOW_RATE, MORE_RATE = 5, 10
COME_SECONDS, GO_SECONDS = 240, 300
STAYS_SECONDS = 60
# Two minutes until it is taken for dead, and as long as one takes to come.
REPLACED_SECONDS = 120 + COME_SECONDS


@contextmanager
def following(least: int) -> Iterator[None]:
    """Have app hosts follow the load, one a replica, as an operator does: policies in the inventory, and `make autoscale`."""
    hosts = {
        "min": least,
        "max": 3,
        "metrics": [{"name": "replicas", "target": 1}],
        "up": {"pause_seconds": 5},
        "down": {"window_seconds": 30, "pause_seconds": 5},
    }
    # Read last of the folder's files.
    file = ROOT / "inventories/lab/group_vars/all/zz_drill.yml"
    file.write_text(
        yaml.safe_dump({"topology_host_scaling": hosts, "drill_policy": REPLICAS, "services": SERVICES}),
        encoding="utf-8",
    )
    log = ROOT / "build/log/autoscale.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        for role in ("prometheus", "autoscaler"):
            watch.configure(role)
        with (
            log.open("w", encoding="utf-8") as printed,
            subprocess.Popen(
                [sys.executable, "-m", "freehold", "autoscale"], stdout=printed, stderr=printed, cwd=ROOT
            ) as process,
        ):
            try:
                yield
                assert process.poll() is None, log.read_text(encoding="utf-8")
            finally:
                process.terminate()
    finally:
        file.unlink()
        for role in ("prometheus", "autoscaler"):
            watch.configure(role)


def added(site: Site) -> dict[str, str]:
    """Return the added hosts, each with its state."""
    return {host.name: host.state for host in Fleet(site.lab.state).hosts().get("app", [])}


def settled(site: Site, wanted: dict[str, str]) -> list[str]:
    """Return what the added hosts are where they are not as wanted."""
    found = added(site)
    return [] if found == wanted else [f"added: {found}"]


@pytest.mark.skipif(not os.environ.get("FREEHOLD_FULL"), reason="takes six minutes: make test-full")
def test_app_hosts_follow_the_load_though_an_ops_host_dies_meanwhile_and_no_order_fails(site: Site) -> None:
    """One comes with the replicas that do not fit and takes requests; the active autoscaler dies, and it goes by the other's word."""
    ledger.stock_up(site, SKUS)
    low = Load(site, SKUS, rate=LOW_RATE, most_seconds=900, name="hosts-low")
    more = Load(site, SKUS, rate=MORE_RATE, most_seconds=COME_SECONDS + SERVED_SECONDS, name="hosts-more")
    report: dict[str, object] = {}
    with following(least=2), low.running():
        with more.running():
            watch.wait_for(lambda: settled(site, {"app3": "present"}), COME_SECONDS)
            watch.wait_for(
                lambda: [] if lately(site, REQUESTS, "app3") > 0 else ["app3 takes no requests"], SERVED_SECONDS
            )
            # The other one also lets people log in, which is another drill's.
            site.ask("ops2", "sudo systemctl restart freehold-autoscaler")
            watch.wait_for(lambda: [] if active(site, "ops1") else ["ops1 is not the active one"], SERVED_SECONDS)
            site.lab.power_cut("ops1")
        started = time.monotonic()
        watch.wait_for(lambda: settled(site, {}), GO_SECONDS)
        report["go_s"] = round(time.monotonic() - started, 1)
        site.lab.power_on("ops1")
    step = min(attempt.intended for attempt in more.attempts) + time.time() - time.monotonic()
    report["first_request_s"] = round(first_request(site, "app3", step) - step, 1)
    failed = low.failed + more.failed
    report |= {"failed": len(failed), "p99_ms": {"low": low.quantile_ms(0.99), "more": more.quantile_ms(0.99)}}
    REPORT.write_text(json.dumps(report) + "\n", encoding="utf-8")
    assert not failed, low.complaint() + more.complaint()
    assert ledger.check(site, low.accepted | more.accepted).faults == []
    health.wait_until_whole(site, WHOLE_SECONDS)


@pytest.mark.skipif(not os.environ.get("FREEHOLD_FULL"), reason="takes eight minutes: make test-full")
def test_a_dead_app_host_is_replaced(site: Site) -> None:
    """An added one goes without a trace and another comes; for a declared one there is one more as long as it is dead."""
    declared = {host.name for host in site.lab.hosts()}
    with following(least=3):
        watch.wait_for(lambda: settled(site, {"app3": "present"}), COME_SECONDS)
        site.lab.power_cut("app3")
        watch.wait_for(lambda: settled(site, {"app4": "present"}), REPLACED_SECONDS)
        assert not (site.lab.state / "volumes" / "app3").exists()
    with following(least=2):
        watch.wait_for(lambda: settled(site, {}), GO_SECONDS)
        site.lab.power_cut("app1")
        try:
            watch.wait_for(lambda: settled(site, {"app3": "present"}), REPLACED_SECONDS)
            time.sleep(STAYS_SECONDS)
            assert added(site) == {"app3": "present"}
        finally:
            site.lab.power_on("app1")
        watch.wait_for(lambda: settled(site, {}), follow.RETURN_SECONDS + GO_SECONDS)
    assert {host.name for host in site.lab.hosts()} == declared
    health.wait_until_whole(site, WHOLE_SECONDS)
