"""A new image is rolled out while orders come in, and nobody notices."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support import deploys, images, ledger, logs, panels
from tests.support.orders import Load
from tests.support.site import Site

RATE = 50
MOST_SECONDS = 300
SETTLE_SECONDS = 60
SERVICES = "orders-api,orders-worker"
SKUS = ("DEPLOY-1", "DEPLOY-2")


def deploy(image: str, archive: Path) -> None:
    """Run ansible/deploy.yml; raises AssertionError with its last words."""
    status, printed = deploys.run(SERVICES, image, archive)
    assert status == 0, printed[-4000:]


def test_a_deploy_fails_nothing(site: Site, tmp_path: Path) -> None:
    """Every order is answered 202 during a deploy and during the way back, all of them settle once, and dashboards show both deploys."""
    ledger.stock_up(site, SKUS)
    first = json.loads((site.lab.state / "images.json").read_text(encoding="utf-8"))["orders"]
    archive = site.lab.state / "artifacts" / "orders.tar"
    other = tmp_path / "orders.tar"
    second = f"orders@{images.variant(archive, other, tmp_path.name)}"
    load = Load(site, SKUS, rate=RATE, most_seconds=MOST_SECONDS, name="deploy")

    def events() -> None:
        deploy(second, other)
        running = site.ask_all(site.groups["app"], "sudo podman ps --format '{{.Image}}'")
        assert all(second.split(":")[1] in str(shown) for shown in running.values()), running
        deploy(first, archive)

    load.during(events)
    assert [(attempt.status, attempt.error) for attempt in load.failed] == []
    assert ledger.check(site, load.accepted, SETTLE_SECONDS).faults == []
    found = ledger.outcome(site, load.name)
    assert found.settled == load.accepted
    assert not found.refused
    mark = panels.marks(panels.load()["overview"], "loki")["Deploys"]
    marked = [(line.labels["services"], line.labels["image"]) for line in logs.lines(site, mark)]
    assert marked[-2:] == [(SERVICES, second), (SERVICES, first)]
