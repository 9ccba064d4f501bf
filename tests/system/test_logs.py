"""Lines of every host reach Loki: soon, with their labels, all of them and in order, and only from hosts."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from functools import partial

import pytest

from tests.support import ledger, panels, traces, watch
from tests.support.logs import ask, lines
from tests.support.site import HostError, Site

MANY = 200_000
# Some 20,000 lines a second: the journal keeps up with it.
WRITE = f"""
import time
for n in range({MANY}):
    print(f"line {{n:06}} of many, as long as a line of a log may well be {{'.' * 60}}", flush=n % 1000 == 999)
    if n % 1000 == 999: time.sleep(0.05)
"""
SETTLED_SECONDS = 10
# Two scrapes.
SCRAPED_SECONDS = 35
# By panels of the dashboard Orders: of the time of requests, and of that from acceptance to settlement.
TRACED = panels.traced(panels.load()["orders"])


def test_a_line_of_any_host_is_found_within_five_seconds(site: Site) -> None:
    """In every Loki, with the labels of its host, unit and level."""
    token = f"token-{uuid.uuid4().hex}"
    run = "sudo systemd-run --quiet --collect --unit=test-token@1 --property=SyslogLevel=err"
    said = site.ask_all(site.addresses, f"{run} echo {token}")
    written = time.monotonic()
    assert [host for host, answer in said.items() if isinstance(answer, HostError)] == []

    def missing() -> list[str]:
        complaints = []
        for keeper in site.groups["loki"]:
            found = {line.labels["host"]: line.labels for line in lines(site, f'{{level="err"}} |= "{token}"', keeper)}
            complaints += [f"{keeper}: nothing of {host}" for host in set(site.addresses) - set(found)]
            for host, labels in found.items():
                tier = next(
                    tier for tier in ("edge", "app", "data", "ops", "replica") if host in site.groups.get(tier, [])
                )
                wanted = {"tier": tier, "unit": "test-token", "service": "test-token", "instance": "1"}
                complaints += [] if wanted.items() <= labels.items() and labels["zone"] else [f"{keeper}: {labels}"]
        return complaints

    watch.wait_for(missing, 5 - (time.monotonic() - written), 0.3)


def test_an_order_is_followed_through_all_hops_by_its_trace(site: Site) -> None:
    """The edge, the service and the worker each say something of one whose client wants its trace, Jaeger has it with its SQL.

    Dots on dashboards lead to it: among the times of requests, and among those until orders were settled.
    """
    ledger.stock_up(site, ["SMOKE-1"])
    trace = traces.place_order(site, "SMOKE-1")
    query = f'{{tier=~"edge|app"}} | json | trace_id="{trace}"'

    def missing() -> list[str]:
        services = {line.labels["service"] for line in lines(site, query)}
        return [f"{service}: nothing" for service in {"haproxy", "orders-api", "orders-worker"} - services]

    watch.wait_for(missing, SETTLED_SECONDS, 0.5)

    watch.wait_for(lambda: traces.unseen(site, trace, site.groups["jaeger"]), SETTLED_SECONDS, 0.5)

    def unnamed() -> list[str]:
        return [f"no exemplar for {expr}" for expr in TRACED if trace not in watch.exemplars(site, expr)]

    assert len(TRACED) == 2
    watch.wait_for(unnamed, SCRAPED_SECONDS)


def test_lines_of_containers_have_their_own_level_and_fields(site: Site) -> None:
    """What they write to standard error is all of one level to the journal."""
    found = lines(site, '{service="orders-worker", level="info"} | json | logger=~"orders.*"')
    assert found
    assert {json.loads(line.text)["level"] for line in found} == {"INFO"}


def test_units_have_few_labels(site: Site) -> None:
    """What has a unit each time shares one, so that a question about all of them meets no limit of Loki's."""
    site.ask(site.groups["app"][0], f"sudo systemd-run --quiet --wait --collect echo {uuid.uuid4().hex}")
    found = ask(
        site, site.groups["loki"][0], "query", query="sum by (host, unit, level) (count_over_time({unit=~`.+`}[1h]))"
    )
    units = {series["metric"]["unit"] for series in found}
    assert {"haproxy", "patroni", "svc-orders-api"} <= units
    assert [unit for unit in units if "@" in unit or sum(sign.isdigit() for sign in unit) > 4] == []


def test_what_is_written_while_loki_is_away_is_all_there_afterwards(site: Site) -> None:
    """In every Loki; each of 200,000 lines once, in order, also those of one microsecond.

    Also where syslog-ng is several files of the journal behind, and a user's process wrote the newest line.
    """
    host, unit = site.groups["data"][0], f"many-{uuid.uuid4().hex[:4]}"
    limits = "--property=LogRateLimitIntervalSec=1s --property=LogRateLimitBurst=100000000"
    began = time.time_ns()
    try:
        site.ask_all(site.groups["loki"], "sudo systemctl stop loki")
        run = f"sudo systemd-run --quiet --wait --collect --unit={unit} {limits} python3 -c {shlex.quote(WRITE)}"
        signal = "sudo systemctl kill --kill-whom=main --signal"
        site.ask(
            host, f"(sleep 2; {signal}=STOP syslog-ng) & {run}; logger of a user; {signal}=CONT syslog-ng", seconds=60
        )
    finally:
        site.ask_all(site.groups["loki"], "sudo systemctl start loki")
    written = f'{{host="{host}", unit="{unit}"}} |~ "^line .* of many"'

    def missing(keeper: str) -> list[str]:
        try:
            found = ask(site, keeper, "query", query=f"sum(count_over_time({written}[10m]))")
        except (HostError, json.JSONDecodeError) as error:
            return [f"{keeper}: {error}"]
        count = int(found[0]["value"][1]) if found else 0
        return [] if count == MANY else [f"{keeper}: {count} of {MANY} lines"]

    for keeper in site.groups["loki"]:
        watch.wait_for(partial(missing, keeper), 60, 1)
    # No two have the same time, so that the next page begins after the last line of this one.
    numbers, start = list[str](), began
    while page := lines(site, written + " | line_format `{{ __line__ | substr 5 11 }}`", start=start):
        numbers += [line.text for line in page]
        start = page[-1].nanoseconds + 1
    assert numbers == [f"{n:06}" for n in range(MANY)]


def test_only_hosts_write_logs_and_only_prometheus_reads_them(site: Site) -> None:
    """Another certificate of the same authority is refused, and whoever has none is not heard."""
    keeper, data = site.groups["loki"][0], site.groups["data"][0]
    address = f"https://{site.addresses[keeper]}:3100/loki/api/v1"
    code = " -o /dev/null -w '%{http_code}'"
    value = [str(time.time_ns()), "of a test"]
    body = json.dumps({"streams": [{"stream": {"host": data, "unit": "test-push"}, "values": [value]}]})
    post = f"{code} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    assert site.ask(data, watch.curl("syslog_ng", f"{address}/push") + post) == "204"
    assert site.ask(data, watch.curl("node_exporter", f"{address}/push") + post) == "403"
    assert site.ask(data, watch.curl("syslog_ng", f"{address}/labels") + code) == "403"
    with pytest.raises(HostError, match="certificate"):
        site.ask(data, f"sudo curl -sS -m 5 --cacert {watch.PKI}/ca.crt {address}/labels{code}")
