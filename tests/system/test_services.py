"""How services run on the app hosts, and what a deploy that goes wrong leaves."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import deploys, images
from tests.support.site import Site

LAYERS = "/var/lib/containers/storage/overlay-layers/layers.json"
UNIT = "svc-orders-api@1.service"
RECORD = "/freehold/services/orders-api/image"
BACK_SECONDS = 20
# Of an image that never will be; the one before, which comes back, has as long.
READY_SECONDS = 20
# Somebody's in the Internet, for whom a host of the lab answers while a test runs: no packet leaves it.
PUBLIC = "1.2.3.4"


def running(site: Site) -> dict[str, str]:
    """Return the image of the API on each app host that answers as ready."""
    shown = {}
    for host in site.groups["app"]:
        image = site.ask(host, "sudo podman ps --filter name=orders-api-1 --format '{{.Image}}'").strip()
        ready = site.ask(host, "curl -s -o /dev/null -w '%{http_code}' http://10.89.1.11:8000/readyz || true").strip()
        shown[host] = image if ready == "200" else f"not ready: {ready}"
    return shown


def recorded(site: Site) -> str:
    """Return the image that etcd's record names for the API."""
    pki = "/etc/freehold/pki"
    files = f"ETCDCTL_CACERT={pki}/ca.crt ETCDCTL_CERT={pki}/etcd.crt ETCDCTL_KEY={pki}/etcd.key"
    host = site.groups["etcd"][0]
    command = f"read -r login; sudo env {files} ETCDCTL_USER=deploy:$login etcdctl --endpoints "
    command += f"https://{site.addresses[host]}:2379 get --print-value-only {RECORD}"
    return site.ask(host, command, stdin=f"{site.secret('etcd_deploy_password')}\n").strip()


def test_no_container_has_a_copy_of_its_image(site: Site) -> None:
    """User namespaces shift owners as they are mounted; a copy costs as much as the image, for each deploy and replica."""
    for host in site.groups["app"]:
        layers = json.loads(site.ask(host, f"sudo cat {LAYERS}"))
        assert layers
        assert [layer["id"] for layer in layers if layer.get("uidmap")] == []


def test_an_operator_reaches_the_dead_letters_by_a_replica(site: Site) -> None:
    """As docs/rabbitmq.md has it: with the replica's own settings and secrets, and its user's rights in the brokers."""
    for service in ("orders-api", "orders-worker"):
        command = f"sudo podman exec {service}-1 orders dead-letters"
        for host in site.groups["app"]:
            shown = site.ask(host, f"{command} list && {command} show no-such-id 2>&1; echo status $?")
            assert "no dead letter has the id no-such-id\nstatus 1\n" in shown


@contextmanager
def public_host(site: Site, host: str) -> Iterator[None]:
    """Have an edge answer at a public address, and a host know the way there."""
    edge = site.groups["edge"][0]
    there = f"ip address {{}} {PUBLIC}/32 dev lo"
    way = f"ip route {{}} {PUBLIC}/32 via {site.addresses[edge]}"
    site.ask(edge, f"sudo {there.format('add')}")
    try:
        site.ask(host, f"sudo {way.format('add')}")
        try:
            yield
        finally:
            site.ask(host, f"sudo {way.format('delete')}")
    finally:
        site.ask(edge, f"sudo {there.format('delete')}")


def test_a_worker_s_webhooks_leave_for_public_addresses_only(site: Site) -> None:
    """Whatever the code lets through: from its container nothing answers at a private address but what its egress names."""
    host = site.groups["app"][0]
    edge, data, ops = (site.addresses[site.groups[tier][0]] for tier in ("edge", "data", "ops"))
    closed = [
        f"{PUBLIC}:80",
        f"{edge}:443",
        f"{site.vip}:443",
        f"{data}:22",
        f"{data}:6432",
        f"{ops}:443",
        "169.254.169.254:80",
    ]
    closed += [f"{site.addresses[host]}:22", "10.89.2.1:22", "10.89.2.1:15480", "10.89.1.11:8000"]
    inside = "sudo nsenter --target $(sudo podman inspect --format '{{.State.Pid}}' orders-worker-1) --net"
    reach = "timeout 2 bash -c 'exec 3<>/dev/tcp/${0%:*}/${0#*:}'"
    script = f"for each in {PUBLIC}:443 {' '.join(closed)}; do ({reach} $each 2> /dev/null && echo $each) & done; wait"
    with public_host(site, host):
        assert site.ask(host, f"{inside} bash -c {shlex.quote(script)}").split() == [f"{PUBLIC}:443"]


def test_a_replica_that_is_killed_comes_back(site: Site) -> None:
    """Without a hand's help, and ready."""
    host = site.groups["app"][0]
    before = site.ask(host, f"systemctl show -P MainPID {UNIT}")
    image = running(site)[host]
    site.ask(host, "sudo podman kill --signal KILL orders-api-1")
    until = time.monotonic() + BACK_SECONDS
    while running(site)[host] != image or site.ask(host, f"systemctl show -P MainPID {UNIT}") == before:
        assert time.monotonic() < until, site.ask(host, f"systemctl status {UNIT} || true")
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"Cmd": ["orders", "no-such-command"]}, "runs the image before again"),
        ({"Env": ["PATH=/opt/orders/bin:/usr/bin:/bin", "PYTHONPATH=/nowhere"]}, "svc-orders-api-pre-deploy"),
    ],
    ids=["never ready", "failing migration"],
)
def test_an_image_that_does_not_work_is_not_deployed(
    site: Site, tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    """The host that tried it goes back, the others never see it, and the record stays."""
    before, record = running(site), recorded(site)
    archive = tmp_path / "orders.tar"
    digest = images.variant(site.lab.state / "artifacts" / "orders.tar", archive, tmp_path.name, **settings)
    status, printed = deploys.run(
        "orders-api", f"orders@{digest}", archive, service_ready_seconds=READY_SECONDS, service_announce_seconds=1
    )
    assert status != 0, printed[-2000:]
    assert said in printed, printed[-4000:]
    assert running(site) == before
    assert recorded(site) == record
    site.ask_all(site.groups["app"], "sudo systemctl reset-failed")  # make status goes on to name what failed


def test_an_app_host_reads_images_and_pushes_none(site: Site) -> None:
    """Its certificate is one of the readers'."""
    host, registry = site.groups["app"][0], site.addresses[site.groups["registry"][0]]
    pki = "/etc/freehold/pki"
    ask = f"sudo curl -s -o /dev/null -w '%{{http_code}}' --cacert {pki}/ca.crt --cert {pki}/podman.crt --key {pki}/podman.key"
    name = "registry.freehold.internal"
    base = f"--resolve {name}:5443:{registry} https://{name}:5443/v2"
    assert site.ask(host, f"{ask} {base}/orders/tags/list").strip() == "200"
    assert site.ask(host, f"{ask} -X POST {base}/orders/blobs/uploads/").strip() == "403"


def test_keycloak_s_host_finds_the_database_on_loopback(site: Site) -> None:
    """The host proxy passes it on to a pooler, whose certificate names the database."""
    command = "openssl s_client -connect 127.0.0.1:15432 -starttls postgres -CAfile /etc/freehold/pki/ca.crt"
    command += " -verify_hostname postgres.freehold.internal -verify_return_error"
    for host in site.groups["identity"]:
        assert "Verification: OK" in site.ask(host, command)
