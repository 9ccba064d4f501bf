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
MOST_RATE, LEAST_RATE = 50.0, 10.0
# Few enough to leave a slow machine idle for some of the time, from which the cost of an order is told.
PROBE_RATE = 20.0
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
    rest = _idle_processors(PROBE_SECONDS)
    with Load(site, skus, rate=PROBE_RATE, most_seconds=60, name="probe").running():
        time.sleep(5)
        loaded = _idle_processors(PROBE_SECONDS)
    borne = PROBE_RATE * SHARE * rest / max(rest - loaded, 0.01)
    print(
        f"processors idle at rest {rest:.2f}, with {PROBE_RATE:g} orders a second {loaded:.2f}: {borne:.0f} are borne"
    )
    return float(round(min(max(borne, LEAST_RATE), MOST_RATE)))


def _idle_processors(seconds: float) -> float:
    """Return how many of this machine's processors had nothing to do on average for some seconds."""

    def ticks() -> float:
        _, _, _, _, idle, waiting, *_ = Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()
        return sum(map(int, (idle, waiting))) / os.sysconf("SC_CLK_TCK")

    before, started = ticks(), time.monotonic()
    time.sleep(seconds)
    return (ticks() - before) / (time.monotonic() - started)
