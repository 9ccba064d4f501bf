"""A container that knows nothing of the platform is a service of it by one entry, as docs/your-own-service.md says."""

from __future__ import annotations

import json
import os
import shlex
import ssl
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest

from tests.support import deploys, images, watch
from tests.support.deploys import converge
from tests.support.site import ROOT, HostError, Site
from tests.system.test_observability import has_trace, otlp

# It converges six hosts twice, which takes four minutes each time.
pytestmark = pytest.mark.skipif(not os.environ.get("FREEHOLD_FULL"), reason="takes ten minutes: make test-full")

# Hosts on which something follows from an entry. Data hosts have nothing of it.
TOUCHED = "app:edge:registry:prometheus"
NUMBER, PORT, MEMORY_MB = 77, 9090, 48
GATEWAY = f"10.89.{NUMBER}.1"
SEEN_SECONDS = 60
RATE = 20
MOST_SECONDS = 300


def server(version: str) -> dict[str, object]:
    """Return an image's settings: a static server of HTTP/1.0, of another user, that ends by another signal."""
    site = f"mkdir -p /tmp/www/hello && cd /tmp/www && echo {version} >hello/index.html && echo ok >health"
    site += " && echo hello_pages 1 >metrics"
    return {
        "Cmd": ["sh", "-c", f"{site} && exec python3 -m http.server {PORT}"],
        "User": "65534:65534",
        "Env": ["PATH=/usr/bin:/bin"],
        "StopSignal": "SIGINT",
    }


@dataclass
class Hello:
    """The service, its two images, and the requests for its page."""

    site: Site
    folder: Path
    is_there: bool = True

    def archive(self, version: str) -> tuple[str, Path]:
        """Return an image's name and its archive."""
        archive = self.folder / f"{version}.tar"
        source = self.site.lab.state / "artifacts" / "orders.tar"
        return f"hello@{images.variant(source, archive, version, **server(version))}", archive

    def entry(self) -> str:
        """Return the variable `services` with this one beside those that are there, as an inventory has it."""
        image, archive = self.archive("first")
        entry = {
            "name": "hello",
            "number": NUMBER,
            "image": image,
            "archive": str(archive),
            "kind": "web",
            "port": PORT,
            "health": "/health",
            "metrics": "/metrics",
            "memory_mb": MEMORY_MB,
            "cpus": 0.25,
            "egress": ["traces"],
            "routes": [{"path": "/hello/", "timeout_ms": 1000}],
            "drain_seconds": 3,
        }
        return json.dumps({"services": f"{{{{ topology_order_services + [{json.dumps(entry)}] }}}}"})

    def remove(self) -> None:
        """Converge without the entry."""
        self.is_there = False
        recap, _, printed = converge("--limit", TOUCHED)
        assert recap, printed[-4000:]
        assert not any(seen.failed or seen.unreachable for seen in recap.values()), printed[-4000:]

    def get(self) -> tuple[int, str]:
        """Return what users get; status 0 and why where there is no answer."""
        context = ssl.create_default_context(cafile=str(self.site.authority))
        try:
            with urllib.request.urlopen(f"{self.site.url}/hello/", timeout=5, context=context) as answer:  # noqa: S310
                return answer.status, answer.read().decode().strip()
        except HTTPError as error:
            return error.code, error.read().decode()
        except (URLError, OSError) as error:
            return 0, str(error)

    @contextmanager
    def asked(self) -> Iterator[list[tuple[int, str]]]:
        """Ask at a steady rate meanwhile, and note the answers."""
        answers: list[tuple[int, str]] = []
        stop = threading.Event()

        def ask() -> None:
            until = time.monotonic() + MOST_SECONDS
            while not stop.wait(1 / RATE) and time.monotonic() < until:
                answers.append(self.get())

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield answers
        finally:
            stop.set()
            thread.join()


@pytest.fixture(scope="module")
def hello(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hello]:
    """Have the service, made by the entry alone, and none of it afterwards."""
    hello = Hello(site, tmp_path_factory.mktemp("hello"))
    assert hello.get()[0] == HTTPStatus.NOT_FOUND
    try:
        recap, _, printed = converge("-e", hello.entry(), "--limit", TOUCHED)
        assert recap, printed[-4000:]
        assert not any(seen.failed or seen.unreachable for seen in recap.values()), printed[-4000:]
        yield hello
    finally:
        if hello.is_there:
            hello.remove()


def test_an_entry_makes_a_container_a_service_that_users_reach(site: Site, hello: Hello) -> None:
    """By the edge, on every app host, at its own port, within its own limits, as nobody on the host."""
    assert hello.get() == (HTTPStatus.OK, "first")
    for host in site.groups["app"]:
        assert site.ask(host, f"curl -sS -m 5 http://10.89.{NUMBER}.11:{PORT}/hello/").strip() == "first"
        shown = site.ask(host, "systemctl show -p MemoryMax -p CPUQuotaPerSecUSec svc-hello@1").split()
        assert sorted(shown) == ["CPUQuotaPerSecUSec=250ms", f"MemoryMax={MEMORY_MB * 1024 * 1024}"]
        process = site.ask(host, "sudo podman inspect --format '{{.State.Pid}}' hello-1").strip()
        assert int(site.ask(host, f"stat -c %u /proc/{process}")) == 1_077_165_534  # docs/services.md: of replica 1


def test_it_is_watched_like_any_other(site: Site, hello: Hello) -> None:
    """Its figures are in Prometheus, of each replica, and its lines in Loki, without a word in its image."""
    hosts = len(site.groups["app"])
    watch.wait_for(lambda: [] if len(watch.query(site, 'up{service="hello"} == 1')) == hosts else ["up"], SEEN_SECONDS)
    watch.wait_for(lambda: [] if watch.query(site, "hello_pages == 1") else ["hello_pages"], SEEN_SECONDS)
    assert hello.get()[0] == HTTPStatus.OK
    printed = subprocess.run(
        ["make", "--silent", "logs", "SERVICE=hello", "TEXT=GET /hello/"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert '"GET /hello/ HTTP/1' in printed


def test_it_reaches_what_its_egress_names_and_nothing_else(site: Site, hello: Hello) -> None:
    """It names the way of traces, and neither the database nor the brokers."""
    assert hello.get()[0] == HTTPStatus.OK
    broker = site.addresses[site.groups["rabbitmq"][0]]
    for host in site.groups["app"]:
        inside = "sudo nsenter --target $(sudo podman inspect --format '{{.State.Pid}}' hello-1) --net"
        trace = uuid.uuid4().hex
        post = f"curl -sS -m 5 -f -H 'Content-Type: application/json' -d @- http://{GATEWAY}:15418/v1/traces"
        site.ask(host, f"{inside} {post}", otlp(trace))
        watch.wait_for(partial(has_trace, site, trace), 5, 0.5)
        for address, port in ((GATEWAY, 15432), (broker, 5671)):
            probe = shlex.quote(f"exec 3<>/dev/tcp/{address}/{port}")
            with pytest.raises(HostError):
                site.ask(host, f"{inside} timeout 2 bash -c {probe}")


def test_another_image_comes_and_goes_and_no_request_fails(site: Site, hello: Hello) -> None:
    """`make history` then tells who changed what when, and how to go back."""
    first, _ = hello.archive("first")
    second, archive = hello.archive("second")
    with hello.asked() as answers:
        status, printed = deploys.run("hello", second, archive, **json.loads(hello.entry()))
        assert status == 0, printed[-4000:]
        assert hello.get() == (HTTPStatus.OK, "second")
        status, printed = deploys.run("hello", first, **json.loads(hello.entry()))
        assert status == 0, printed[-4000:]
    assert hello.get() == (HTTPStatus.OK, "first")
    assert {status for status, _ in answers} == {HTTPStatus.OK}, answers
    assert {text for _, text in answers} == {"first", "second"}
    told = subprocess.run(
        ["make", "--silent", "history", "SERVICE=hello"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert told.count(first[-64:]) >= 2, told
    assert f"-e service=hello -e image={second}" in told


def test_an_entry_that_left_takes_all_of_it_along(site: Site, hello: Hello) -> None:
    """Units, container, network, files, route and figures."""
    hello.remove()
    assert hello.get()[0] == HTTPStatus.NOT_FOUND
    for host in site.groups["app"]:
        left = site.ask(
            host,
            "systemctl list-units --all --no-legend 'svc-hello*'; sudo podman ps -a --format '{{.Names}}' | grep hello;"
            " ip link show svc-77 2>/dev/null; ls /etc/freehold/services | grep hello; true",
        )
        assert left.strip() == ""
