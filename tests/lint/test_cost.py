"""`make cost`: no price without a source and a day, no bill with a guess, and prices that can be read anew."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from freehold import cost, playbooks

HOSTS = [
    cost.Host("edge1", "edge", "t3.small", 2, 2, 16),
    cost.Host("ops1", "ops", "c7i.large", 2, 4, 60),
    cost.Host("data1", "data", "c7i.xlarge", 4, 8, 30),
    cost.Host("app1", "app", "c7i.large", 2, 4, 30),
    cost.Host("app2", "app", "c7i.large", 2, 4, 30),
]
Bill = Callable[[list[cost.Host], cost.Load], Iterator[cost.Item]]
BILLS: list[Bill] = [cost.own, cost.managed]
# The bulk files' form: https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/using-ppslong.html
ABOUT = '"FormatVersion","v1.0"\n"Disclaimer","for information"\n"Publication Date","2026-11-20T10:11:12Z"\n"Version","1"\n"OfferCode","X"\n'
HEADER = (
    '"SKU","OfferTermCode","RateCode","TermType","PriceDescription","EffectiveDate","StartingRange","EndingRange","Unit",'
    '"PricePerUnit","Currency","Product Family","usageType","operation"\n'
)


def line(sku: str, usd: str, usage_type: str, operation: str = "", *, term: str = "OnDemand", start: str = "0") -> str:
    """Return a line of a price list."""
    return f'"{sku}","T","R","{term}","words","2026-11-01","{start}","Inf","Hrs","{usd}","USD","F","{usage_type}","{operation}"\n'


@pytest.mark.parametrize("name", cost.Prices().entries)
def test_each_price_has_a_source_and_its_day(name: str) -> None:
    """Who doubts a price reads it there."""
    entry = cost.Prices().entries[name]
    assert entry["usd"] > 0
    assert entry["unit"]
    assert entry["source"].startswith("https://")
    assert datetime.date(2026, 1, 1) <= entry["date"] <= datetime.datetime.now(datetime.UTC).date()


@pytest.mark.parametrize("bill", BILLS)
def test_a_bill_has_only_what_has_a_price_and_all_of_it_counts(bill: Bill) -> None:
    """A quantity of nothing would be a line that was forgotten."""
    items = list(bill(HOSTS, cost.Load()))
    assert {item.price for item in items} <= set(cost.Prices().entries)
    assert all(item.quantity > 0 for item in items)


def test_a_host_costs_its_hours() -> None:
    """Two app hosts of one type are one line of two times 730 hours."""
    [app] = [item for item in cost.own(HOSTS, cost.Load()) if item.what.startswith("app1, app2")]
    assert (app.price, app.quantity) == ("c7i.large", 2 * 730)
    assert cost.Prices().cost(app) == pytest.approx(2 * 730 * cost.Prices().entries["c7i.large"]["usd"])


def test_containers_get_what_the_app_hosts_have() -> None:
    """Processors and memory, by the hour."""
    quantities = {item.price: item.quantity for item in cost.managed(HOSTS, cost.Load())}
    assert quantities["fargate_cpu"] == 2 * 2 * 730
    assert quantities["fargate_memory"] == 2 * 4 * 730


@pytest.mark.parametrize("bill", BILLS)
def test_more_load_costs_more(bill: Bill) -> None:
    """At both: what is carried out of the house is paid in any case."""
    less, more = (sum(map(cost.Prices().cost, bill(HOSTS, cost.Load(requests=requests)))) for requests in (1000, 2000))
    assert more > less


def test_a_million_requests_are_a_million() -> None:
    """500 a second are 1,314 million in 730 hours."""
    quantities = {item.price: item.quantity for item in cost.managed(HOSTS, cost.Load(requests=500, orders=0.1))}
    assert quantities["waf_requests"] == pytest.approx(1314)
    assert quantities["sqs_requests"] == pytest.approx(1314 * 0.1 * 3)


def test_a_type_without_a_price_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """They name the host, the variable and the way out."""
    said = {"app1": {"group_names": ["app"], "aws_instance_type": "u-24tb1.metal", "fleet_volumes": ""}}
    monkeypatch.setattr(playbooks, "variables", lambda *_: said)
    with pytest.raises(
        playbooks.InventoryError, match=r"aws_instance_type of app1: u-24tb1.metal has no price.*t3.small"
    ):
        cost.hosts("any")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder, and give it and its address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_prices_are_read_anew_from_the_list_and_keep_their_place(served: tuple[Path, str], tmp_path: Path) -> None:
    """By SKU, or by what is used and how; the first step of those that fall; per million what is sold by the piece."""
    folder, base = served
    table = tmp_path / "prices.yml"
    table.write_text(
        "---\n# words\nregion: us-east-1\nsources: {x: https://example.com/, list: https://example.com/list}\nprices:\n"
        "  t3.small:\n    {usd: 1.5, unit: hour, source: x, date: 2026-01-01,\n"
        '     offer: AmazonEC2, usage_type: "BoxUsage:t3.small", operation: RunInstances}\n'
        "  disk: {usd: 1, unit: GB-month, source: x, date: 2026-01-01, offer: AmazonEC2, sku: AAA}\n"
        "  gone: {usd: 7, unit: hour, source: x, date: 2026-01-01, offer: AmazonEC2, sku: GONE}\n"
        "  piece: {usd: 9, unit: million, source: x, date: 2026-01-01, offer: AmazonRDS, usage_type: Piece}\n"
        "  away: {usd: 5, unit: hour, source: x, date: 2026-01-01, offer: AmazonVPC, sku: AWAY}\n"
        "  by_hand: {usd: 3, unit: hour, source: x, date: 2026-01-01}\n"
    )
    lists = {
        "AmazonEC2": line("B", "0.0208000000", "BoxUsage:t3.small", "RunInstances")
        + line("B", "0.0100000000", "BoxUsage:t3.small", "RunInstances", term="Reserved")
        + line("C", "0.0392000000", "BoxUsage:t3.small", "RunInstances:0002")
        + line("AAA", "0.0800000000", "EBS:VolumeUsage.gp3")
        + line("AAA", "0.0700000000", "EBS:VolumeUsage.gp3", start="51200"),
        "AmazonRDS": line("D", "0.0000002000", "Piece"),
    }
    for offer, lines in lists.items():
        file = folder / offer / "current/us-east-1/index.csv"
        file.parent.mkdir(parents=True)
        file.write_text(ABOUT + HEADER + lines)

    assert not cost.refresh(base, table)  # since one is gone, and one list
    entries = cost.Prices(table).entries
    assert {name: entry["usd"] for name, entry in entries.items()} == {
        "t3.small": 0.0208,
        "disk": 0.08,
        "gone": 7,
        "piece": 0.2,
        "away": 5,
        "by_hand": 3,
    }
    day, before = datetime.date(2026, 11, 20), datetime.date(2026, 1, 1)
    assert {name for name, entry in entries.items() if entry["date"] == day} == {"t3.small", "disk", "piece"}
    assert {name for name, entry in entries.items() if entry["date"] == before} == {"gone", "away", "by_hand"}
    read = {name for name, entry in entries.items() if entry["source"] == "https://example.com/list"}
    assert read == {"t3.small", "disk", "piece"}
    assert table.read_text().startswith("---\n# words\n")


def test_what_is_no_price_list_is_refused() -> None:
    """Such as the page of somebody who stands between."""
    with pytest.raises(ValueError, match="no price list"):
        cost.read_offer(["<html>,\n"], {})
