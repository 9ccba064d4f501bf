"""Faults that a test makes for as long as a block runs. Each is mended by itself, whatever happened meanwhile, and loses no data."""

from __future__ import annotations

import datetime
import hashlib
import json
import shlex
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support import watch
from tests.support.site import HostError, Site

FILLING = "filled-by-a-test"
PEM = f"{watch.PKI}/haproxy.pem"
TABLE = "table inet cut_off_by_a_test"
PARTITION = f"""
{TABLE} {{
  chain input {{ type filter hook input priority -5; tcp dport 2380 drop; tcp sport 2380 drop; }}
  chain output {{ type filter hook output priority -5; tcp dport 2380 drop; tcp sport 2380 drop; }}
}}
"""
STARTUP = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'"
# Some 24 MB that change nothing when they are replayed.
WRITE = "SELECT pg_logical_emit_message(false, 'test', repeat('.', 1048576)) FROM generate_series(1, 24)"
BURIED_SECONDS = 10

Labels = dict[str, str]


class Places(NamedTuple):
    """Where faults are made: by who leads what before them.

    What has a quorum loses its member on one data host, the spare one, so that never more is away than that host has.
    """

    primary: str  # of PostgreSQL
    standby: str  # that is left
    spare: str  # leads neither PostgreSQL nor etcd
    holder: str  # of the virtual address
    backup: str  # edge


Fault = Callable[[Site, Places], AbstractContextManager[Labels]]


def places(site: Site) -> Places:
    """Return the hosts to make faults on."""
    primary, holder = site.primary(), site.vip_holder()
    leader = watch.query(site, "etcd_server_is_leader == 1")[0]["metric"]["instance"]
    spare = next(host for host in site.groups["data"] if host not in (primary, leader))
    standby = next(host for host in site.groups["data"] if host not in (primary, spare))
    backup = next(host for host in site.groups["edge"] if host != holder)
    return Places(primary, standby, spare, holder, backup)


def insist(site: Site, hosts: Iterable[str], command: str, stdin: str = "") -> None:
    """Run a command on hosts, and again where it failed; raises HostError with the words of those where it never succeeded."""
    left = list(hosts)
    for pause in (1, 5, 0):
        said = site.ask_all(left, command, stdin)
        failed = {host: answer for host, answer in said.items() if isinstance(answer, HostError)}
        if not failed:
            return
        left = list(failed)
        time.sleep(pause)
    raise HostError("; ".join(str(error) for error in failed.values()))


@contextmanager
def stopped(site: Site, hosts: Iterable[str], unit: str) -> Iterator[None]:
    """Have a unit stopped on hosts."""
    names = list(hosts)
    try:
        for host in names:
            site.ask(host, f"sudo systemctl stop --no-block {unit}")
        yield
    finally:
        insist(site, names, f"sudo systemctl start --no-block {unit}")


@contextmanager
def filled(site: Site, host: str, folder: str, left: float) -> Iterator[None]:
    """Have the disk below a folder full but for a share of it; no byte is written."""
    file = f"{folder}/{FILLING}"
    size = f"$(stat --file-system --format='%a %b %S' {folder} | awk '{{printf \"%.0f\", ($1 - $2 * {left}) * $3}}')"
    try:
        site.ask(host, f"sudo fallocate --length {size} {file}")
        yield
    finally:
        insist(site, [host], f"sudo rm --force {file}")


@contextmanager
def ops_disk_full(site: Site, _: Places) -> Iterator[Labels]:
    """Fill the disk of the images on an ops host to 83 %."""
    host = site.groups["ops"][-1]
    with filled(site, host, "/var/lib/docker-registry", 0.17):
        yield {"instance": host, "mountpoint": "/var/lib/docker-registry"}


@contextmanager
def broker_disk_full(site: Site, places: Places) -> Iterator[Labels]:
    """Fill a broker's disk until it has less than it wants, while its host's PostgreSQL, whose disk it is too, is away."""
    with filled(site, places.spare, "/var/lib/rabbitmq", 0.04):
        yield {"instance": places.spare}


@contextmanager
def standby_stopped(site: Site, places: Places) -> Iterator[Labels]:
    """Stop a standby of PostgreSQL; the other one confirms what is committed."""
    with stopped(site, [places.spare], "patroni"):
        yield {}


@contextmanager
def standby_lags(site: Site, places: Places) -> Iterator[Labels]:
    """Freeze what replays on a standby, which keeps what it gets, and have the primary write more than may be missing."""
    psql = "sudo -u postgres psql -XAtqc "
    startup = f"$({psql}{shlex.quote(STARTUP)})"
    try:
        site.ask(places.standby, f"sudo kill -STOP {startup}")
        site.ask(places.primary, f"{psql}{shlex.quote(WRITE)} >/dev/null")
        yield {"instance": places.standby}
    finally:
        insist(site, [places.standby], f"sudo kill -CONT {startup}")


@contextmanager
def pooler_stopped(site: Site, places: Places) -> Iterator[Labels]:
    """Stop the pooler beside the standby that runs: the primary's gives all answers."""
    with stopped(site, [places.standby], "pgbouncer"):
        yield {"job": "pgbouncer", "instance": places.standby}


@contextmanager
def etcd_cut_off(site: Site, places: Places) -> Iterator[Labels]:
    """Cut one member of etcd off from the two others."""
    try:
        site.ask(places.spare, "sudo nft --file -", PARTITION)
        yield {"instance": places.spare}
    finally:
        insist(site, [places.spare], "sudo nft --file -", f"{TABLE} {{}}\ndelete {TABLE}\n")


@contextmanager
def valkey_frozen(site: Site, places: Places) -> Iterator[Labels]:
    """Freeze a replica of the cache: it takes connections, and says nothing."""
    replica = f'redis_instance_info{{cluster="cache", instance="{places.spare}", role="slave"}}'
    port = watch.query(site, replica)[0]["metric"]["port"]
    unit = {"7100": "valkey-server@cache-1", "7101": "valkey-server@cache-2"}[port]
    try:
        site.ask(places.spare, f"sudo systemctl kill --signal=SIGSTOP {unit}")
        yield {"instance": places.spare, "cluster": "cache", "port": port}
    finally:
        insist(site, [places.spare], f"sudo systemctl kill --signal=SIGCONT {unit}")


@contextmanager
def dead_letter(site: Site, places: Places) -> Iterator[Labels]:
    """Send the workers a message that is no order; it is dropped as an operator does it."""
    body = f"no order {uuid.uuid4()}"
    identifier = f"sha256-{hashlib.sha256(body.encode()).hexdigest()[:16]}"
    message = {
        "routing_key": "intake-1",
        "payload": body,
        "payload_encoding": "string",
        "properties": {"delivery_mode": 2},
    }
    options = f'user = "admin:{site.secret("rabbitmq_admin_password")}"\ndata = {json.dumps(json.dumps(message))}\n'
    address = f"https://{site.addresses[places.primary]}:15671/api/exchanges/orders/amq.default/publish"
    orders = "sudo podman exec orders-api-1 orders dead-letters"
    host = site.groups["app"][0]

    def missing() -> list[str]:
        return [] if identifier in site.ask(host, f"{orders} list") else [f"{identifier} is not among the dead letters"]

    try:
        said = site.ask(places.primary, f"curl -sS -m 10 -K - --cacert {watch.PKI}/ca.crt {address}", options)
        assert json.loads(said) == {"routed": True}
        watch.wait_for(missing, BURIED_SECONDS, 0.5)
        yield {"queue": "intake-dead"}
    finally:
        insist(site, [host], f"{orders} drop {identifier}")


@contextmanager
def workers_stopped(site: Site, _: Places) -> Iterator[Labels]:
    """Stop the workers of all app hosts: orders wait in their queues."""
    with stopped(site, site.groups["app"], "svc-orders-worker@1"):
        yield {}


@contextmanager
def api_stopped(site: Site, _: Places) -> Iterator[Labels]:
    """Stop the order service's API on one app host, and what would start it again; the other one takes all requests."""
    host = site.groups["app"][-1]
    with stopped(site, [host], "freehold-replicas svc-orders-api@1"):
        yield {"instance": host}


@contextmanager
def lokis_stopped(site: Site, _: Places) -> Iterator[Labels]:
    """Stop each Loki: lines wait on their hosts."""
    with stopped(site, site.groups["loki"], "loki"):
        yield {}


@contextmanager
def exporter_stopped(site: Site, places: Places) -> Iterator[Labels]:
    """Stop the node exporter of the edge host that does not hold the virtual address."""
    with stopped(site, [places.backup], "prometheus-node-exporter"):
        yield {"job": "node", "instance": places.backup}


@contextmanager
def certificate_runs_short(site: Site, places: Places) -> Iterator[Labels]:
    """Show users a certificate for the same key that ends within ten days; the file stays as it is."""
    short = _ending(site, site.ask(places.holder, f"cat {watch.PKI}/haproxy.crt"), datetime.timedelta(days=10))
    socket = "socat -t 5 - /run/haproxy/admin.sock"
    show = f"{{ echo 'set ssl cert {PEM} <<'; cat - {watch.PKI}/haproxy.key; echo; }} | {socket}"
    show += f" && echo 'commit ssl cert {PEM}' | {socket}"
    try:
        said = site.ask(places.holder, f"sudo sh -c {shlex.quote(show)}", short)
        assert "Success!" in said, said
        yield {"url": f"{site.url}/"}
    finally:
        insist(site, [places.holder], "sudo systemctl reload haproxy")


def _ending(site: Site, pem: str, within: datetime.timedelta) -> str:
    """Return a certificate as another one but for its end, signed by the site's authority."""
    old = x509.load_pem_x509_certificate(pem.encode())
    key = serialization.load_pem_private_key(site.authority.with_suffix(".key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    new = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + within)
    )
    for extension in old.extensions:
        new = new.add_extension(extension.value, critical=extension.critical)
    return new.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
