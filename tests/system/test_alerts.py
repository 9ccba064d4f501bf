"""People hear of faults in every part of the platform, all made at one time, each by its own alert, and of each one's end."""

from __future__ import annotations

import datetime
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Event

import pytest

from tests.support import faults, health, ledger, panels, watch
from tests.support.faults import Fault, Labels
from tests.support.site import Site
from tests.support.watch import Message

# By alert; where two have the same one, a word tells them apart. Those that take longest to be heard of come first. A dead letter needs workers, which are stopped after it.
FAULTS: Mapping[str, Fault] = {
    "PostgresStandbyMissing": faults.standby_stopped,
    "LokiDown": faults.lokis_stopped,
    "HostDiskFull": faults.ops_disk_full,
    "PostgresReplicationLag": faults.standby_lags,
    "RabbitmqDeadLetters": faults.dead_letter,
    "RabbitmqQueueWithoutConsumer": faults.workers_stopped,
    "HaproxyServerDown": faults.api_stopped,
    "ValkeyDown": faults.valkey_frozen,
    "TargetDown-pgbouncer": faults.pooler_stopped,
    "TargetDown-node": faults.exporter_stopped,
    "EtcdNoLeader": faults.etcd_cut_off,
    "RabbitmqAlarm": faults.broker_disk_full,
    "CertificateEndsSoon": faults.certificate_runs_short,
}
WHOLE_SECONDS = 60
# Beside the alert's own patience: a part that ends, a scrape that fails, two evaluations, a message.
HEARD_SECONDS = 60
# A part that starts and is found again, a scrape, an evaluation of each Prometheus, a message.
CALLED_OFF_SECONDS = 90
QUIET_SECONDS = 30
# The second Alertmanager gives the first 15 s to tell people, and then looks whether it has.
ONCE_SECONDS = 20


@dataclass(frozen=True)
class Heard:
    """How long it took until people heard of a fault, and of its end."""

    fault_seconds: float
    end_seconds: float


def states(told: list[Message], labels: Labels) -> dict[str, str]:
    """Return what messages said last of each series of alerts that has these labels."""
    alerts = [alert for message in told for alert in message["alerts"]]
    return {a["fingerprint"]: a["status"] for a in alerts if labels.items() <= a["labels"].items()}


class Ear:
    """What is heard of one alert from now on, until all is over."""

    def __init__(self, told: list[Message], alert: str, over: Event) -> None:
        """Listen for an alert among messages: of those that are there, one may call off what another test did."""
        self._told, self._alert, self._over = told, alert, over
        self._made = len(told)

    def _heard(self, labels: Labels) -> dict[str, str]:
        return states(self._told[self._made :], labels)

    def _until(self, what: Callable[[], bool], seconds: float, complaint: str) -> float:
        start = time.monotonic()
        while not what():
            passed = time.monotonic() - start
            assert passed < seconds, f"{self._alert}: {complaint} within {seconds:.0f} s"
            assert not self._over.wait(0.5), f"{self._alert}: the test was ended"
        return time.monotonic() - start

    def follow(self, labels: Labels, fault: ExitStack) -> Heard:
        """Return what was heard of a fault that was made, which is mended as soon as that is."""
        wanted, patience = {"alertname": self._alert, **labels}, HEARD_SECONDS + held_seconds(self._alert)
        with fault:
            heard = self._until(lambda: "firing" in self._heard(wanted).values(), patience, f"nobody heard of {labels}")
            mended = len(self._told)

        def called_off() -> bool:
            later = states(self._told[mended:], wanted)
            return all(later.get(series) == "resolved" for series in self._heard(wanted))

        return Heard(heard, self._until(called_off, CALLED_OFF_SECONDS, f"nobody called {labels} off"))


def held_seconds(alert: str) -> float:
    """Return for how long an alert's condition has to hold."""
    held = next(rule.get("for", "0s") for rule in panels.rules() if rule.get("alert") == alert)
    return int(held[:-1]) * {"s": 1, "m": 60}[held[-1]]


def complaints(site: Site) -> list[str]:
    """Return each alert that fires at any Prometheus, and each target that is down.

    One alert always fires; those of service levels, which look days back, do for hours where few requests were and one was slow.
    """
    question = 'ALERTS{alertstate="firing", alertname!="DeadMansSwitch", slo=""} or up == 0'
    return [
        f"{server}: {found['metric']}"
        for server in site.groups["prometheus"]
        for found in watch.query(site, question, server)
    ]


def tell(site: Site, labels: Labels, minutes: int) -> None:
    """Say to each Alertmanager, as all Prometheus servers do, that an alert fires and when it ends."""
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    body = json.dumps([{"labels": labels, "endsAt": ends.isoformat()}])
    for host in site.groups["alertmanager"]:
        address = f"https://{site.addresses[host]}:9093/api/v2/alerts"
        post = f"{watch.curl('prometheus', address)} -f -H 'Content-Type: application/json' -d @-"
        site.ask(site.groups["prometheus"][0], post, body)


@pytest.fixture(scope="module", autouse=True)
def posted(site: Site, told: list[Message]) -> Iterator[tuple[Labels, float]]:
    """Have an alert of no fault fire from before all faults are made, and return its labels and when it began."""
    labels = {"alertname": "ToldByATest", "instance": uuid.uuid4().hex, "severity": "warning"}
    assert not states(told, labels)
    tell(site, labels, 30)
    yield labels, time.monotonic()
    tell(site, labels, 0)


@pytest.fixture(scope="module")
def outcomes(site: Site, told: list[Message]) -> dict[str, Future[Heard]]:
    """Make all faults, mend each as soon as people heard of it, and return what came of each alert."""
    health.wait_until_whole(site, WHOLE_SECONDS)
    watch.wait_for(lambda: complaints(site), QUIET_SECONDS)
    places, over, found = faults.places(site), Event(), dict[str, Future[Heard]]()
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        try:
            for name, make in FAULTS.items():
                ear, fault = Ear(told, name.partition("-")[0], over), ExitStack()
                try:
                    labels = fault.enter_context(make(site, places))
                except Exception as error:  # noqa: BLE001  (it is this alert's; the others go on)
                    found[name] = Future()
                    found[name].set_exception(error)
                else:
                    found[name] = pool.submit(ear.follow, labels, fault)
            wait(found.values())
        finally:
            over.set()
    return found


@pytest.mark.parametrize("alert", FAULTS)
def test_people_hear_of_a_fault_and_of_its_end(outcomes: dict[str, Future[Heard]], alert: str) -> None:
    """By the alert that is for it, at a receiver that is no part of the platform."""
    heard = outcomes[alert].result()
    print(f"{alert}: heard after {heard.fault_seconds:.0f} s, called off {heard.end_seconds:.0f} s after it was mended")


def test_people_are_told_of_an_alert_once(told: list[Message], posted: tuple[Labels, float]) -> None:
    """Every Alertmanager has it and this receiver; they agree on who tells."""
    labels, began = posted
    time.sleep(max(0.0, ONCE_SECONDS - (time.monotonic() - began)))
    assert len([message for message in told if states([message], labels)]) == 1


@pytest.mark.usefixtures("outcomes")
def test_nothing_is_left_of_the_faults(site: Site, told: list[Message]) -> None:
    """Every part is whole and asked, no alert fires, people were told so, and no order waits or is a dead letter."""
    health.wait_until_whole(site, WHOLE_SECONDS)
    watch.wait_for(lambda: complaints(site), QUIET_SECONDS)

    # Two Prometheus servers judge at different times: one may say once more that it fires when the other has called it off.
    def said_last() -> list[str]:
        last = {name: states(told, {"alertname": name.partition("-")[0]}) for name in FAULTS}
        return [name for name, found in last.items() if set(found.values()) != {"resolved"}]

    watch.wait_for(said_last, QUIET_SECONDS)
    assert ledger.check(site, []).faults == []
