"""A new image is rolled out while orders come in, and nobody notices."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest

from tests.support import deploys, images, ledger, logs, panels
from tests.support.commands import freehold
from tests.support.orders import Load
from tests.support.site import Site

FEW = 20  # a second, where a deploy need not be seen to disturb many
MOST_SECONDS = 480
SETTLE_SECONDS = 60
SERVICES = "orders-api,orders-worker"
SKUS = ("DEPLOY-1", "DEPLOY-2")


# Shares of the requests for the host that tries an image first, in percent, and of how many it is judged.
TRIAL_PERCENTS = [20, 50]
TRIAL_REQUESTS = 150
LEAST_TRIAL_SECONDS = 10
# Ready, and good for nothing else.
FAILING = """
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200 if self.path in ("/readyz", "/livez") else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


def deploy(image: str, archive: Path, **variables: object) -> None:
    """Run ansible/deploy.yml; raises AssertionError with its last words."""
    status, printed = deploys.run(SERVICES, image, archive, **variables)
    assert status == 0, printed[-4000:]


def trial(rate: float) -> dict[str, object]:
    """Return the variables by which a host tries an image first, for as long as it takes to judge it at so many requests a second."""
    seconds = max(LEAST_TRIAL_SECONDS, math.ceil(TRIAL_REQUESTS / (rate * sum(TRIAL_PERCENTS) / 100)))
    return {"canary": True, "haproxy_canary_percents": TRIAL_PERCENTS, "haproxy_canary_seconds": seconds}


def running(site: Site) -> dict[str, object]:
    """Return what runs on each app host, as the names of images."""
    return dict(site.ask_all(site.groups["app"], "sudo podman ps --format '{{.Image}}'"))


def test_a_deploy_fails_nothing(site: Site, rate: float, tmp_path: Path) -> None:
    """Every order is answered 202 while one host tries an image, while all get it and during the way back, and settles once.

    Dashboards show both deploys, and `make history` names them and the way back.
    """
    ledger.stock_up(site, SKUS)
    first = json.loads((site.lab.state / "images.json").read_text(encoding="utf-8"))["orders"]
    archive = site.lab.state / "artifacts" / "orders.tar"
    other = tmp_path / "orders.tar"
    second = f"orders@{images.variant(archive, other, tmp_path.name)}"
    load = Load(site, SKUS, rate=rate, most_seconds=MOST_SECONDS, name="deploy")

    deployed: list[float] = []

    def events() -> None:
        deploy(second, other, **trial(rate))
        deployed.append(time.monotonic())
        assert all(second.split(":")[1] in str(shown) for shown in running(site).values()), running(site)
        deploy(first, archive)

    load.during(events)
    assert not load.failed, f"{load.complaint()}; the way back began at {deployed[0] - load.attempts[0].intended:.0f} s"
    assert ledger.check(site, load.accepted, SETTLE_SECONDS).faults == []
    found = ledger.outcome(site, load.name)
    assert found.settled == load.accepted
    assert not found.refused
    mark = panels.marks(panels.load()["overview"], "loki")["Deploys"]
    marked = [(line.labels["services"], line.labels["image"]) for line in logs.lines(site, mark)]
    assert marked[-2:] == [(SERVICES, second), (SERVICES, first)]
    told = freehold("history", "orders-api")
    assert f"orders-api runs {first}\n" in told
    assert f"-e service=orders-api -e image={second}\n" in told


@pytest.mark.skipif(not os.environ.get("FREEHOLD_FULL"), reason="takes three minutes: make test-full")
def test_an_image_that_fails_requests_goes_back_by_itself(site: Site, tmp_path: Path) -> None:
    """It is ready, so one host tries it with a share of the requests; few fail, the others never run it, and all are as before."""
    ledger.stock_up(site, SKUS)
    before = running(site)
    archive = tmp_path / "failing.tar"
    source = site.lab.state / "artifacts" / "orders.tar"
    image = f"orders@{images.variant(source, archive, tmp_path.name, Cmd=['python3', '-c', FAILING])}"
    load = Load(site, SKUS, rate=FEW, most_seconds=MOST_SECONDS, name="canary")
    said: list[tuple[int, str]] = []

    def events() -> None:
        said.append(deploys.run("orders-api", image, archive, **trial(FEW)))

    load.during(events)
    ((status, printed),) = said
    assert status != 0, printed[-4000:]
    assert "requests failed, elsewhere" in printed, printed[-4000:]
    assert running(site) == before
    # A fifth of the requests for the two seconds until the edge looks, which it then gives the host no more.
    assert {attempt.status for attempt in load.failed} <= {500}
    assert len(load.failed) <= FEW * 3
    assert ledger.check(site, load.accepted, SETTLE_SECONDS).faults == []
