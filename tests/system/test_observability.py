"""Prometheus sees every part, its rules can be evaluated, and only it is told figures."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Iterable
from functools import partial
from urllib.parse import urlsplit

import pytest

from tests.support import ledger, traces, watch
from tests.support.site import HostError, Site

JOBS = {
    "node": ["all"],
    "haproxy": ["edge"],
    "host_proxy": ["app", "identity", "registry", "jaeger", "loki", "autoscaler"],
    "etcd": ["etcd"],
    "patroni": ["postgres"],
    "rabbitmq": ["rabbitmq"],
    "rabbitmq_queues": ["rabbitmq"],
    "postgres": ["postgres"],
    "pgbouncer": ["postgres"],
    "valkey": ["valkey"],
    "prometheus": ["prometheus"],
    "alertmanager": ["alertmanager"],
    "keycloak": ["identity"],
    "registry": ["registry"],
    "jaeger": ["jaeger"],
    "autoscaler": ["autoscaler"],
    "replicas": ["app"],
    "loki": ["loki"],
}
SERVICES = ("orders-api", "orders-worker")
# What asks for a certificate of the authority, and not whose it is; the firewall lets ops hosts to it, and whoever else it works for.
UNNAMED = {"etcd", "patroni", "rabbitmq", "rabbitmq_queues", "valkey"}
# How curl ends where no answer came: refused while the two agreed on TLS, or no way there.
REFUSED, UNREACHED = "refused by TLS", "not reached"
ENDS = {"35": REFUSED, "55": REFUSED, "56": REFUSED, "7": UNREACHED, "28": UNREACHED}
# Two scrapes, for a target that was just there.
SEEN_SECONDS = 35
SKU = "SMOKE-1"
# Longer than anything waits for an answer of Jaeger's: the host proxy 5 s, the order service 10 s.
FROZEN_SECONDS = 12
IN_TIME_SECONDS = 3


def expected(site: Site, server: str) -> set[tuple[str, str]]:
    """Return each job, or service, with each host of it, as one Prometheus is to have them."""
    hosts = {job: {h for g in groups for h in site.groups.get(g, site.addresses)} for job, groups in JOBS.items()}
    hosts["probe"] = {server}  # what users see, as seen from its own host
    pairs = {(job, host) for job, found in hosts.items() for host in found}
    return pairs | {(service, host) for service in SERVICES for host in site.groups["app"]}


def test_every_target_is_up(site: Site) -> None:
    """On each Prometheus: all that the platform runs, each of it asked, none unknown, and nothing else."""

    def complaints() -> list[str]:
        said = []
        for server in site.groups["prometheus"]:
            targets = watch.ask(site, "targets?state=active", server)["activeTargets"]
            pairs = [(t["labels"].get("service", t["labels"]["job"]), t["labels"]["instance"]) for t in targets]
            said += [f"{server}: {pair} is expected or found alone" for pair in set(pairs) ^ expected(site, server)]
            down = [(pair, t) for pair, t in zip(pairs, targets, strict=True) if t["health"] != "up"]
            said += [f"{server}: {pair} {t['health']}: {t['lastError']}" for pair, t in down]
        return said

    watch.wait_for(complaints, SEEN_SECONDS)


def test_every_rule_is_evaluated_without_error(site: Site) -> None:
    """Also those that promtool cannot judge, as they meet the figures of real servers."""

    def complaints() -> list[str]:
        groups = watch.ask(site, "rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        bad = [f"{rule['name']}: {rule['health']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]
        return bad if rules else ["no rule is known"]

    watch.wait_for(complaints, SEEN_SECONDS)


# One figure for each alert, so that none is quiet only because what it asks for does not exist.
@pytest.mark.parametrize(
    "figure",
    [
        "node_filesystem_avail_bytes",
        'node_network_address_info{held="vip"}',
        "instance:cpu_used:ratio > 0",
        "instance:memory_used:ratio > 0 and instance:memory_used:ratio < 1",
        "instance:memory_avail_in_4h:bytes",
        "instance:memory_avail_in_3d:bytes",
        'node_textfile_mtime_seconds{file=~".*/host.prom"}',
        'host_certificate_not_after_timestamp_seconds{certificate="ca"} > time()',
        "etcd_server_has_leader",
        "etcd_disk_wal_fsync_duration_seconds_bucket",
        "haproxy_process_current_connections / haproxy_process_max_connections",
        "pgbouncer_used_clients / pgbouncer_config_max_client_connections",
        "rabbitmq_process_open_fds / rabbitmq_process_max_fds",
        "patroni_primary == 1",
        "patroni_quorum_standby == 1",
        "postgres:replication_lag:bytes",
        'queue:consumers:max{queue=~"intake-[0-9]+"} > 0',
        'queue:messages:max{queue="intake-dead"}',
        "rabbitmq_alarms_free_disk_space_watermark",
        "rabbitmq_alarms_memory_used_watermark",
        "redis_up == 1",
        'haproxy_server_status{job="haproxy", state="UP"} == 1',
        'orders_http_request_seconds_bucket{le="0.1"}',
        'orders_settlement_lag_seconds_bucket{le="1.0"}',
        "orders_worker_paused",
        "prometheus_notifications_alertmanagers_discovered > 0",
        "prometheus_rule_evaluation_failures_total",
        "alertmanager_notifications_failed_total",
        "loki_distributor_lines_received_total > 0",
        'syslogng_output_events_total{result="dropped"}',
        "syslogng_disk_queue_disk_usage_bytes / syslogng_disk_queue_capacity_bytes",
        'node_textfile_mtime_seconds{file=~".*/syslog-ng.prom"}',
    ],
)
def test_what_alerts_ask_for_is_there(site: Site, figure: str) -> None:
    """By its name and labels, from the servers as they run."""
    watch.wait_for(lambda: [] if watch.query(site, figure) else [f"{figure}: nothing"], SEEN_SECONDS)


@pytest.fixture(scope="module")
def doors(site: Site) -> dict[str, set[str]]:
    """Return for each job, or service, the addresses at which Prometheus is told its figures."""
    found: dict[str, set[str]] = {}
    for target in watch.ask(site, "targets?state=active")["activeTargets"]:
        found.setdefault(target["labels"].get("service", target["labels"]["job"]), set()).add(target["scrapeUrl"])
    return found


def knock(site: Site, host: str, addresses: Iterable[str], identity: str = "") -> dict[str, str]:
    """Return for each address how it answers a host that shows one of its certificates, or none: a status, or why there is none."""
    asked = "".join(f'url = "{address}"\noutput = /dev/null\n' for address in addresses)
    shown = f"--cert {watch.PKI}/{identity}.crt --key {watch.PKI}/{identity}.key" if identity else ""
    written = "-w '%{url} %{http_code} %{exitcode}\\n'"
    curl = (
        f"sudo curl -sZ --globoff --connect-timeout 2 -m 12 --cacert {watch.PKI}/ca.crt {shown} {written} -K - || true"
    )
    said = [line.split() for line in site.ask(host, curl, asked, seconds=60).splitlines()]
    return {url: code if code != "000" else ENDS.get(ended, f"curl ended with {ended}") for url, code, ended in said}


@pytest.fixture(scope="module")
def answers(site: Site, doors: dict[str, set[str]]) -> dict[str, dict[str, str]]:
    """Return how each door of figures answers a Prometheus server's host, by the certificate that it shows."""
    addresses = sorted({address for found in doors.values() for address in found if "127.0.0.1" not in address})
    host = site.groups["prometheus"][0]
    return {identity: knock(site, host, addresses, identity) for identity in ("prometheus", "node_exporter", "")}


@pytest.mark.parametrize("job", [*JOBS, *SERVICES])
def test_only_prometheus_is_told_figures(
    doors: dict[str, set[str]], answers: dict[str, dict[str, str]], job: str
) -> None:
    """Whoever shows no certificate is turned away at each door, and another one of the authority but where the program knows no names."""
    other = {"200"} if job in UNNAMED else {"403", REFUSED}
    for address in doors[job]:
        assert answers["prometheus"][address] == "200", address
        assert answers["node_exporter"][address] in other, address
        assert answers[""][address] == REFUSED, address


def test_figures_are_told_to_ops_hosts_only(site: Site, doors: dict[str, set[str]]) -> None:
    """The firewall lets no other tier to a door, with whichever certificate, but where the same port has other work."""
    ports = {job: {urlsplit(address).netloc for address in found} for job, found in doors.items()}
    shared = ports["etcd"] | ports["patroni"]
    every = set().union(*ports.values())
    wanted = {"edge": every, "app": every - shared, "data": every - shared}
    for tier, doors_of_others in wanted.items():
        host = site.groups[tier][0]
        closed = {
            f"https://{door}/metrics"
            for door in doors_of_others
            if door.partition(":")[0] not in ("127.0.0.1", site.addresses[host])
        }
        said = knock(site, host, sorted(closed), "node_exporter")
        assert said == dict.fromkeys(closed, UNREACHED), host


def test_alertmanagers_are_one_cluster(site: Site) -> None:
    """Each knows all others, so that they agree on who tells people."""
    members = sorted(f"{site.addresses[host]}:9094" for host in site.groups["alertmanager"])
    for host in site.groups["alertmanager"]:
        address = f"https://{site.addresses[host]}:9093/api/v2/status"
        cluster = json.loads(site.ask(site.groups["prometheus"][0], watch.curl("prometheus", address)))["cluster"]
        assert cluster["status"] == "ready", host
        assert sorted(peer["address"] for peer in cluster["peers"]) == members, host


def otlp(trace: str) -> str:
    """Return one span as OTLP's JSON."""
    now = time.time_ns()
    span = {
        "traceId": trace,
        "spanId": trace[:16],
        "name": "test",
        "startTimeUnixNano": str(now - 1000),
        "endTimeUnixNano": str(now),
    }
    service = {"attributes": [{"key": "service.name", "value": {"stringValue": "test"}}]}
    return json.dumps({"resourceSpans": [{"resource": service, "scopeSpans": [{"spans": [span]}]}]})


def has_trace(site: Site, trace: str) -> list[str]:
    """Return a complaint unless one of the hosts that keep traces has this one."""
    for host in site.groups["jaeger"]:
        found = json.loads(site.ask(host, f"curl -sS -m 5 127.0.0.1:16686/api/traces/{trace}"))
        if found["data"] and found["data"][0]["spans"][0]["operationName"] == "test":
            return []
    return [f"no host of {site.groups['jaeger']} has the trace {trace}"]


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_replica_sends_is_kept(site: Site, service: str) -> None:
    """From each service's own network on each app host, by the way that its containers have."""
    number = {"orders-api": 1, "orders-worker": 2}[service]
    for host in site.groups["app"]:
        trace = uuid.uuid4().hex
        # In the container's network, where the image has no curl.
        process = f"$(sudo podman inspect --format '{{{{.State.Pid}}}}' {service}-1)"
        post = f"curl -sS -m 5 -f -H 'Content-Type: application/json' -d @- http://10.89.{number}.1:15418/v1/traces"
        site.ask(host, f"sudo nsenter --target {process} --net {post}", otlp(trace))
        watch.wait_for(partial(has_trace, site, trace), 5, 0.5)


@pytest.mark.parametrize("figure", ["exporter_send_failed", "receiver_refused"])
def test_what_jaeger_would_lose_is_counted(site: Site, figure: str) -> None:
    """By the names that its alert asks for; they are there once a span was sent, as above."""
    name = f'otelcol_{figure}_spans_total{{job="jaeger"}}'
    watch.wait_for(lambda: [] if watch.query(site, name) else [f"{name}: nothing"], SEEN_SECONDS)


def test_only_app_hosts_proxies_write_traces(site: Site) -> None:
    """Another certificate is refused, another tier is not let through, and nothing is read from other hosts."""
    keeper, app, data = (site.groups[group][0] for group in ("jaeger", "app", "data"))
    trace = uuid.uuid4().hex
    address = f"https://{site.addresses[keeper]}:4318/v1/traces"
    post = " -o /dev/null -w '%{http_code}' -H 'Content-Type: application/json' -d " + shlex.quote(otlp(trace))
    assert site.ask(app, watch.curl("host_proxy", address) + post) == "200"
    watch.wait_for(partial(has_trace, site, trace), 5, 0.5)
    assert site.ask(app, watch.curl("node_exporter", address) + post) == "403"
    read = f"https://{site.addresses[keeper]}:4318/api/traces/{trace}"
    assert site.ask(app, watch.curl("host_proxy", read) + " -o /dev/null -w '%{http_code}'") == "404"
    for host, port in ((data, 4318), (app, 16686)):
        with pytest.raises(HostError, match=r"timed out|refused"):
            site.ask(host, f"curl -sS -m 3 http://{site.addresses[keeper]}:{port}/")


def test_no_request_waits_for_jaeger(site: Site) -> None:
    """Every order whose client wants its trace is answered in time while no Jaeger says a word; once they do, traces come again."""
    ledger.stock_up(site, [SKU])
    seconds = []
    try:
        # Frozen, not stopped: whoever asks is not refused, but left to wait.
        site.ask_all(site.groups["jaeger"], "sudo systemctl kill --signal=STOP jaeger")
        until = time.monotonic() + FROZEN_SECONDS
        while time.monotonic() < until:
            started = time.monotonic()
            traces.place_order(site, SKU)
            seconds.append(time.monotonic() - started)
    finally:
        site.ask_all(site.groups["jaeger"], "sudo systemctl kill --signal=CONT jaeger")
    assert max(seconds) < IN_TIME_SECONDS
    trace = traces.place_order(site, SKU)
    watch.wait_for(lambda: traces.unseen(site, trace, site.groups["jaeger"]), SEEN_SECONDS)
