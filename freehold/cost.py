"""`make cost`: what an inventory's hosts would cost a month at Amazon, beside the managed services that they stand in for.

Prices, with their sources and dates, are in prices.yml. What is not priced there is named, never guessed.
"""

from __future__ import annotations

import csv
import datetime
import re
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from freehold import playbooks
from freehold.playbooks import InventoryError
from freehold.progress import console

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_name("prices.yml")
PRICE_LIST = "https://pricing.us-east-1.amazonaws.com/offers/v1.0/aws"
TIERS = ("edge", "ops", "data", "app", "replica")
HOURS = 730  # a month, as Amazon reckons
SECONDS = HOURS * 3600
MILLION = 1e6


@dataclass(frozen=True)
class Size:
    """How a tier's hosts are made at Amazon, unless a host has its own `aws_instance_type`."""

    instance_type: str
    disk_gb: int


SIZES = {
    "edge": Size("t3.small", 16),
    "ops": Size("c7i.large", 60),
    "data": Size("c7i.xlarge", 16),
    "app": Size("c7i.large", 30),
    "replica": Size("c7i.large", 16),
}
ZONES = 2
VALKEY_NODES = 6  # three primaries and a replica each, for what are two clusters of ours
WAF_RULES = 6
METRICS = 100  # of the service's own
# Kinds of requests that a queue is asked for each order: put, get, and delete.
SQS_REQUESTS = 3
# Bytes of a request's line in the log of the edge: three of the lab's had 427, 463 and 473.
LOG_LINE_BYTES = 450
# A capacity unit of the balancer (LCU) is so many GB an hour.
LCU_GB = 1.0
UNPRICED = (
    "traces (X-Ray): no dated price for this region was read",
    "identity (Cognito): how many users sign in is not known, nor what Keycloak's share of its host is",
    "backups, I/O beyond one write an order at Aurora, traffic between zones, support, and your time: they are on neither bill",
)


@dataclass(frozen=True)
class Load:
    """What is asked of the system, on average over a month."""

    requests: float = 500  # a second
    orders: float = 0.1  # of them
    answer_kb: float = 1

    @property
    def millions(self) -> float:
        """Requests a month, in millions."""
        return self.requests * SECONDS / MILLION

    @property
    def gb(self) -> float:
        """What answers carry a month, in GB."""
        return self.requests * SECONDS * self.answer_kb / MILLION


@dataclass(frozen=True)
class Host:
    """A host of the inventory, as it would be made at Amazon."""

    name: str
    tier: str
    instance_type: str
    vcpu: int
    memory_gb: int
    disk_gb: float


@dataclass(frozen=True)
class Item:
    """A line of a bill: so many units of what a price is for."""

    what: str
    price: str
    quantity: float


class Prices:
    """The table of prices."""

    def __init__(self, file: Path = FILE) -> None:
        self.file = file

    @cached_property
    def _table(self) -> dict[str, Any]:
        table: dict[str, Any] = yaml.safe_load(self.file.read_text())
        return table

    @property
    def region(self) -> str:
        """Return the region that all prices are of."""
        return str(self._table["region"])

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """Return each price: `usd`, `unit`, `source` (an address), `date` and, where it can be found in a list, where."""
        sources = self._table["sources"]
        return {name: {**entry, "source": sources[entry["source"]]} for name, entry in self._table["prices"].items()}

    def cost(self, item: Item) -> float:
        """Return the USD of an item."""
        return float(self.entries[item.price]["usd"]) * item.quantity


def hosts(inventory: str) -> list[Host]:
    """Return the inventory's hosts; raise InventoryError where one cannot be priced."""
    types = {name: entry for name, entry in Prices().entries.items() if "vcpu" in entry}
    found = []
    asked = playbooks.variables(inventory, "all", "group_names", "aws_instance_type", "fleet_volumes")
    for name, said in sorted(asked.items()):
        tier = next((tier for tier in TIERS if tier in said["group_names"]), "")
        if not tier:
            raise InventoryError(f"{name} is in none of the groups {', '.join(TIERS)}: its size is not known.")
        size = SIZES[tier]
        instance_type = said["aws_instance_type"] or size.instance_type
        if instance_type not in types:
            raise InventoryError(
                f"aws_instance_type of {name}: {instance_type} has no price in {FILE.relative_to(ROOT)}; "
                f"add one with its source, or give one of {', '.join(types)}."
            )
        shape = types[instance_type]
        volumes = sum(volume["size_mb"] for volume in said["fleet_volumes"] or []) / 1024
        found.append(Host(name, tier, instance_type, shape["vcpu"], shape["memory_gb"], size.disk_gb + volumes))
    return found


def own(machines: list[Host], load: Load) -> Iterator[Item]:
    """Tell what the inventory costs."""
    for tier in TIERS:
        inside = [host for host in machines if host.tier == tier]
        for kind in sorted({host.instance_type for host in inside}):
            names = [host.name for host in inside if host.instance_type == kind]
            yield Item(f"{', '.join(names)}: {kind}", kind, len(names) * HOURS)
    yield Item("disks", "disk", sum(host.disk_gb for host in machines))
    # Private hosts reach the Internet through one gateway a zone.
    yield Item(f"ways out for private hosts, {ZONES} zones", "nat_gateway", ZONES * HOURS)
    addresses = sum(host.tier == "edge" for host in machines) + ZONES
    yield Item("public addresses", "public_address", addresses * HOURS)
    yield Item("answers to users", "to_internet", load.gb)


def managed(machines: list[Host], load: Load) -> Iterator[Item]:
    """Tell what stands for it among the managed services, under the same load."""
    yield Item("load balancer (ALB)", "alb", HOURS)
    yield Item("load balancer, capacity", "alb_lcu", max(HOURS, load.gb / LCU_GB))
    yield Item("web application firewall (WAF)", "waf_acl", 1)
    yield Item("WAF, rules", "waf_rule", WAF_RULES)
    yield Item("WAF, requests", "waf_requests", load.millions)
    app = [host for host in machines if host.tier == "app"]
    yield Item("containers (Fargate), app hosts' processors", "fargate_cpu", sum(host.vcpu for host in app) * HOURS)
    yield Item("containers (Fargate), app hosts' memory", "fargate_memory", sum(host.memory_gb for host in app) * HOURS)
    yield Item("PostgreSQL (Aurora), writer and reader, db.r6g.large", "aurora_r6g_large", ZONES * HOURS)
    data = [host.disk_gb for host in machines if host.tier == "data"]
    yield Item("PostgreSQL (Aurora), storage of one data host", "aurora_storage", max(data, default=0))
    yield Item("PostgreSQL (Aurora), one write an order", "aurora_io", load.millions * load.orders)
    yield Item("Valkey (ElastiCache), cache.t4g.small", "valkey_t4g_small", VALKEY_NODES * HOURS)
    yield Item("queue (SQS), put, get and delete an order", "sqs_requests", load.millions * load.orders * SQS_REQUESTS)
    rules = "".join(path.read_text() for path in (ROOT / "roles/prometheus/files/rules").glob("*.yml"))
    alerts = len(re.findall(r"^ *- alert:", rules, re.MULTILINE))
    yield Item("metrics (CloudWatch)", "cloudwatch_metric", METRICS)
    yield Item("alarms (CloudWatch), as many as our alerts", "cloudwatch_alarm", alerts)
    logged = load.requests * SECONDS * LOG_LINE_BYTES / 1e9
    yield Item("logs (CloudWatch), a line a request", "cloudwatch_logs", logged)
    yield Item("logs, kept for a month", "cloudwatch_logs_kept", logged)
    yield Item(f"ways out for containers, {ZONES} zones", "nat_gateway", ZONES * HOURS)
    yield Item("public addresses", "public_address", 2 * ZONES * HOURS)
    yield Item("answers to users", "to_internet", load.gb)


def show(inventory: str, load: Load) -> None:
    """Print both bills."""
    prices = Prices()
    machines = hosts(inventory)
    bills = {
        f"inventories/{inventory} on EC2": list(own(machines, load)),
        "managed services": list(managed(machines, load)),
    }
    _say(
        f"USD a month in {prices.region}, on demand, without taxes: {load.requests:g} requests a second around the clock, "
        f"of which {load.orders:.0%} are orders, answers of {load.answer_kb:g} KB"
    )
    totals = []
    for name, items in bills.items():
        _say(f"\n{name}")
        for item in items:
            entry = prices.entries[item.price]
            quantity = f"{item.quantity:,.0f} {entry['unit']}"
            _say(f"  {item.what:<56} {quantity:>20} x {entry['usd']:<8g} {prices.cost(item):>10,.2f}")
        totals.append(sum(prices.cost(item) for item in items))
        _say(f"  {'total':<88} {totals[-1]:>10,.2f}")
    _say(
        "\nSizes on both sides are assumed: no host of ours was run at Amazon. `aws_instance_type` of a host names another."
    )
    _say(f"The managed services cost {totals[1] / totals[0]:.1f} times as much. Not counted:")
    for what in UNPRICED:
        _say(f"  {what}")
    used = {item.price for items in bills.values() for item in items}
    dates = sorted(prices.entries[name]["date"] for name in used)
    _say(
        f"Prices of {dates[0]} to {dates[-1]}, with their sources in {FILE.relative_to(ROOT)}; `make prices` reads anew."
    )


def refresh(base: str = PRICE_LIST, file: Path = FILE) -> bool:
    """Read the prices that say where they stand from Amazon's price list, and write them down; return whether all were found.

    `base` is where the list is: BASE/OFFER/current/REGION/index.csv, as Amazon documents its bulk files.
    """
    prices = Prices(file)
    wanted = {name: entry for name, entry in prices.entries.items() if "offer" in entry}
    text = file.read_text()
    whole = True
    for offer in sorted({entry["offer"] for entry in wanted.values()}):
        address = f"{base}/{offer}/current/{prices.region}/index.csv"
        asked = {name: entry for name, entry in wanted.items() if entry["offer"] == offer}
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310  (an address of ours)
                published, found = read_offer((line.decode() for line in answer), asked)
        except (OSError, ValueError) as error:
            _say(f"{address}: {error}; its prices stay: {', '.join(sorted(asked))}")
            whole = False
            continue
        for name in sorted(asked):
            if name not in found:
                whole = False
                _say(f"{name}: {address} has no such line any more; the price of {wanted[name]['date']} stays")
            elif found[name] != wanted[name]["usd"]:
                _say(f"{name}: {wanted[name]['usd']:g} -> {found[name]:g}")
        for name, usd in found.items():
            text = _replaced(text, name, usd, published)
    file.write_text(text)
    for name in sorted(set(prices.entries) - set(wanted)):
        _say(f"{name}: says no `offer`, so the price of {prices.entries[name]['date']} stays")
    return whole


def read_offer(lines: Iterable[str], wanted: dict[str, dict[str, Any]]) -> tuple[str, dict[str, float]]:
    """Return the day on which an offer's file was published and, by name, the USD of what is wanted, from its lines.

    Lines are CSV: some with one name and one value each, then a header, then a line a price. The first step of a price that falls
    with the quantity counts. The unit is the file's own, but for what is sold by the piece: that is told by the million.
    """
    rows = csv.reader(lines)
    about = {}
    for row in rows:
        if row[0] == "SKU":
            header = {name: number for number, name in enumerate(row)}
            break
        about[row[0]] = row[1]
    else:
        raise ValueError("this is no price list: no line begins with SKU")
    found = {}
    for row in rows:
        said = {name: row[number] for name, number in header.items()}
        if said["TermType"] != "OnDemand" or said.get("StartingRange", "0") not in {"", "0"}:
            continue
        for name, entry in wanted.items():
            by_sku = said["SKU"] == entry.get("sku")
            by_type = said.get("usageType") == entry.get("usage_type", "-")
            by_type = by_type and said.get("operation", "") == entry.get("operation", said.get("operation", ""))
            if by_sku or by_type:
                found[name] = float(said["PricePerUnit"]) * (MILLION if entry["unit"] == "million" else 1)
    day = datetime.datetime.fromisoformat(about["Publication Date"])
    return day.date().isoformat(), found


def _replaced(text: str, name: str, usd: float, date: str) -> str:
    """Return the table with another price, its date, and the list as its source; comments and order stay."""
    price = f"{usd:.10f}".rstrip("0").rstrip(".")
    entry = re.compile(
        rf"(^  {re.escape(name)}:\s*\{{usd: )[0-9.]+(,.*?source: )\w+(, date: )[0-9-]+", re.MULTILINE | re.DOTALL
    )
    return entry.sub(lambda match: f"{match[1]}{price}{match[2]}list{match[3]}{date}", text, count=1)


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
