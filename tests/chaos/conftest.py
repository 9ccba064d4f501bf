"""Fixtures of the power cuts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support import health, ledger
from tests.support.orders import Load
from tests.support.site import ROOT, Site

REPORT = ROOT / "build" / "chaos.json"
SKUS = ("CHAOS-1", "CHAOS-2", "CHAOS-3", "CHAOS-4", "CHAOS-5")
WHOLE_SECONDS = 60


@dataclass
class Run:
    """One fault under load, and what is known of it."""

    name: str
    kind: str
    load: Load
    cut: float = 0.0
    dark: float = 0.0
    on: float = 0.0
    healed: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="session", autouse=True)
def whole(site: Site) -> None:
    """Start from a system that is whole."""
    dead = [host.name for host in site.lab.hosts() if not host.running]
    assert not dead, f"these hosts do not run: {', '.join(dead)}; ansible-playbook ansible/lab.yml starts them"
    health.wait_until_whole(site, WHOLE_SECONDS)


@pytest.fixture
def shelves(site: Site) -> None:
    """Have plenty of each product."""
    ledger.stock_up(site, SKUS)


@pytest.fixture(autouse=True)
def power(site: Site) -> Iterator[None]:
    """Leave no host without power, whatever happened in a test."""
    yield
    for host in site.lab.hosts():
        if not host.running:
            site.lab.power_on(host.name)


def report(run: Run) -> None:
    """Add a run to build/chaos.json; earlier ones of the same fault that were made within a day are kept."""
    known: dict[str, Any] = {"faults": []}
    if REPORT.exists() and time.time() - REPORT.stat().st_mtime < 24 * 3600:
        known = json.loads(REPORT.read_text(encoding="utf-8"))
    fault = next((entry for entry in known["faults"] if entry["name"] == run.name), None)
    if fault is None:
        fault = {"name": run.name, "kind": run.kind, "runs": []}
        known["faults"].append(fault)
    fault["runs"].append(run.facts)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
