"""What the Makefile offers to people does what its line says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time

from freehold.up import order_command
from tests.support import ledger
from tests.support.commands import freehold
from tests.support.site import ROOT, Site, grafana_given


def test_ssh_logs_in_to_the_host_that_is_named(site: Site) -> None:
    """Also where nobody sits at a terminal."""
    host = site.groups["data"][0]
    assert freehold("ssh", host, stdin="hostname").splitlines()[-1] == host


def test_status_names_every_host_and_who_leads_and_what_is_left_out(site: Site) -> None:
    """One page, from the parts themselves; of Grafana one line where no source gave its program, and else none."""
    shown = freehold("status")
    assert [host for host in site.addresses if host not in shown] == []
    for part in ("PostgreSQL", "Valkey", "RabbitMQ", "who hears of alerts", site.vip):
        assert part in shown
    assert re.search(
        r"replicas by load +orders-api \d of \d \(2 to 6\)\nhosts by load +app 2 of 2 \(2 to 4\)", shown
    ), shown
    left_out = [line.startswith("skipped: grafana: ") for line in shown.splitlines() if "grafana:" in line]
    assert left_out == ([] if grafana_given(site) else [True])


def test_logs_are_found_by_text_and_host(site: Site) -> None:
    """Whatever signs the text is of."""
    first, second = site.groups["data"][:2]
    text = f"{{{{ a }}}} \"token\" 'of' `{time.time()}` %s"
    for host in (first, second):
        site.ask(host, f"logger -- {shlex.quote(text)}")
    time.sleep(5)
    assert freehold("logs", "--text", text, "--since", "1m").count(text) == 2
    shown = freehold("logs", "--text", text, "--host", second)
    assert (shown.count(text), second in shown, first in shown) == (1, True, False)


def test_logs_come_from_every_host_that_has_the_unit(site: Site) -> None:
    """By the name that a service has in the inventory."""
    shown = freehold("logs", "--lines", "300", "orders-api")
    assert [host for host in site.groups["app"] if host not in shown] == []


def test_orders_runs_a_command_of_the_service_and_checks_all_where_none_is_named(site: Site) -> None:
    """With a replica's own settings and secrets, and what comes by the standard input."""
    shown = freehold("orders").splitlines()
    assert {line.split(":")[0] for line in shown} >= {"ok   once", "ok   stock", "ok   ledger", "ok   events"}
    assert "ok   accepted: 0 orders, 0 of them decided" in freehold("orders", "check --accepted -", stdin="\n")
    assert freehold("orders", "--host", site.groups["app"][-1], "dead-letters list") == ""


def test_the_line_that_make_up_shows_places_an_order(site: Site) -> None:
    """As a newcomer copies it into a shell."""
    ledger.stock_up(site, ["SMOKE-1"])
    line = f"{order_command('lab', site.authority)} --silent --show-error"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "accepted"
