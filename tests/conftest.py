"""Fixtures of all tests that need a running system."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ledger, watch
from tests.support import site as sites
from tests.support.orders import Load

# Orders a second beside a fault or a deploy.
MOST_RATE, LEAST_RATE = 50.0, 20.0
PROBE_SECONDS = 8
# What orders may take of the processors that the lab at rest leaves: the rest is for hosts that start and leaders that are elected.
SHARE = 0.6


@pytest.fixture(scope="session")
def site() -> sites.Site:
    """Return the system under test; every host of it runs."""
    return sites.load()


@pytest.fixture(scope="module")
def told(site: sites.Site) -> Iterator[list[watch.Message]]:
    """Return the messages of Alertmanager, which for this module's tests has a receiver and little patience."""
    with watch.receiver(site) as (url, messages):
        watch.configure(
            "alertmanager",
            alertmanager_receivers=[{"name": "test", "severities": ["critical", "warning"], "webhook_url": url}],
            alertmanager_group_wait="1s",
            alertmanager_group_interval="2s",
        )
        try:
            yield messages
        finally:
            watch.configure("alertmanager")


@pytest.fixture(scope="session")
def rate(site: sites.Site) -> float:
    """Return how many orders a second come in beside a fault or a deploy: 50, and fewer where the lab's machine is too slow for them.

    Where processors are used up, requests fail for that alone, and nothing is learned of the fault.
    """
    skus = ("PROBE-1",)
    ledger.stock_up(site, skus)
    time.sleep(5)
    rest = _busy_processors(PROBE_SECONDS)
    with Load(site, skus, rate=MOST_RATE, most_seconds=60, name="probe").running():
        time.sleep(5)
        loaded = _busy_processors(PROBE_SECONDS)
    borne = MOST_RATE * SHARE * ((os.cpu_count() or 1) - rest) / max(loaded - rest, 0.01)
    print(f"processors at rest {rest:.2f}, with {MOST_RATE:g} orders a second {loaded:.2f}: {borne:.0f} are borne")
    return float(round(min(max(borne, LEAST_RATE), MOST_RATE)))


def _busy_processors(seconds: float) -> float:
    """Return how many of this machine's processors were busy on average for some seconds."""

    def ticks() -> float:
        _, user, nice, system, _, _, irq, softirq, *_ = (
            Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()
        )
        return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")

    before, started = ticks(), time.monotonic()
    time.sleep(seconds)
    return (ticks() - before) / (time.monotonic() - started)
