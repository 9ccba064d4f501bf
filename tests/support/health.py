"""Whether every part is whole, with its leaders spread, as each part itself sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.site import ROOT, HostError, Site

PROBE = (ROOT / "freehold/probe.py").read_text(encoding="utf-8")
PAUSE_SECONDS = 4.0


def complaints(site: Site) -> list[str]:
    """Return all that is not as it should be; empty when the system is whole."""
    parts: list[Callable[[Site], list[str]]] = [_data, _rabbitmq, _edge]
    with ThreadPoolExecutor(len(parts)) as pool:
        return [complaint for found in pool.map(lambda part: part(site), parts) for complaint in found]


def wait_until_whole(site: Site, seconds: float) -> float:
    """Return how long it took until nobody complained; raises AssertionError with the complaints that were left."""
    start = time.monotonic()
    while True:
        found = complaints(site)
        passed = time.monotonic() - start
        if not found:
            return passed
        if passed > seconds:
            raise AssertionError(f"after {passed:.0f} s:\n" + "\n".join([*found, *_last_words(site)]))
        time.sleep(PAUSE_SECONDS)


def _last_words(site: Site) -> list[str]:
    """Return how Patroni is on each host, and what it said last: of all parts it has the most reasons to be away."""
    command = "systemctl is-active patroni; sudo journalctl --unit=patroni --no-pager --lines=300 | grep -v 'no action' | tail -n 12"
    return [f"{host}: {answer}" for host, answer in site.ask_all(site.groups["postgres"], command).items()]


def _probe(site: Site, hosts: list[str], *what: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return what the probe says on each host, and a complaint for each host that cannot be asked."""
    answers = site.ask_all(hosts, "nice -n 19 sudo python3 - " + " ".join(what), PROBE)
    found: dict[str, dict[str, Any]] = {}
    silent = []
    for host, answer in answers.items():
        if isinstance(answer, HostError):
            silent.append(str(answer))
        else:
            found[host] = json.loads(answer)
    return found, silent


def _data(site: Site) -> list[str]:
    members = site.groups["etcd"]
    endpoints = ",".join(f"https://{site.addresses[host]}:2379" for host in members)
    found, said = _probe(site, site.groups["data"], "data", endpoints)
    if not found:
        return said
    first = next(iter(found.values()))
    names = {address: host for host, address in site.addresses.items()}
    primary = ""
    for host, answer in found.items():  # each has a view of its own, which may be an old one
        primary, complaints_of_postgres = _postgres(site, answer["patroni"])
        said += [f"{complaint}, as {host} sees it" for complaint in complaints_of_postgres]
    said += _etcd(first["etcd"], names, members, primary)
    for cluster in ("sessions", "cache"):
        said += _valkey(cluster, [answer["valkey"][cluster] for answer in found.values()], names)
    return said


def _postgres(site: Site, cluster: dict[str, Any] | str) -> tuple[str, list[str]]:
    if isinstance(cluster, str):
        return "", [f"patroni: {cluster}"]
    members = cluster["members"]
    roles = sorted(f"{member['role']} {member['state']}" for member in members)
    followers = len(site.groups.get("replica", []))
    standbys = len(site.groups["postgres"]) - followers - 1
    expected = sorted(["leader running", *["quorum_standby streaming"] * standbys, *["replica streaming"] * followers])
    said = [] if roles == expected else [f"postgres: {', '.join(roles)}"]
    said += [f"postgres: {m['name']} lags by {m['lag']}" for m in members if m.get("lag") not in (None, 0)]
    if len({member.get("timeline") for member in members}) != 1:
        said.append("postgres: members have different timelines")
    return next((str(member["name"]) for member in members if member["role"] == "leader"), ""), said


def _etcd(status: list[dict[str, Any]] | str, names: dict[str, str], members: list[str], primary: str) -> list[str]:
    if isinstance(status, str):
        return [f"etcd: {status}"]
    said = []
    by_host = {
        names[entry["Endpoint"].removeprefix("https://").rpartition(":")[0]]: entry["Status"] for entry in status
    }
    missing = sorted(set(members) - set(by_host))
    if missing:
        said.append(f"etcd: no status of {', '.join(missing)}")
    said += [f"etcd: {host}: {entry['errors']}" for host, entry in by_host.items() if entry.get("errors")]
    leaders = {entry["leader"] for entry in by_host.values()}
    led_by = [host for host, entry in by_host.items() if entry["header"]["member_id"] in leaders]
    if len(leaders) != 1 or len(led_by) != 1:
        said.append(f"etcd: led by {led_by}")
    elif led_by[0] == primary:
        said.append(f"etcd: leader on {primary}, where PostgreSQL's primary is")
    return said


def _valkey(cluster: str, views: list[dict[str, Any] | str], names: dict[str, str]) -> list[str]:
    said = []
    for view in views:
        if isinstance(view, str):
            said.append(f"valkey {cluster}: {view}")
            continue
        if view["state"] != "ok":
            said.append(f"valkey {cluster}: cluster_state {view['state']}")
        nodes = view["nodes"]
        bad = [node["address"] for node in nodes if node["flags"] or not node["connected"]]
        if len(nodes) != 2 * len(views) or bad:
            said.append(f"valkey {cluster}: {len(nodes)} nodes, not well: {bad}")
        primaries = {node["id"]: names.get(node["address"], node["address"]) for node in nodes if not node["primary"]}
        if sorted(primaries.values()) != sorted(set(primaries.values())) or len(primaries) != len(views):
            said.append(f"valkey {cluster}: primaries on {sorted(primaries.values())}")
        for node in nodes:
            if node["primary"] and primaries.get(node["primary"]) == names.get(node["address"]):
                said.append(f"valkey {cluster}: replica beside its primary on {names.get(node['address'])}")
    return sorted(set(said))


def _rabbitmq(site: Site) -> list[str]:
    hosts = site.groups["rabbitmq"]
    said: list[str] = []
    for host in hosts:
        found, silent = _probe(site, [host], "rabbitmq")
        answer = found.get(host, {}).get("rabbitmq", "; ".join(silent))
        if isinstance(answer, str):
            said.append(f"rabbitmq: {answer}")
            continue
        said = []
        for queue in answer:
            if queue["online"] != len(hosts):
                said.append(f"rabbitmq: {queue['queue']} has {queue['online']} members online")
        leaders = sorted(
            queue["leader"] for queue in answer if queue["queue"].startswith("intake-") and queue["queue"][-1].isdigit()
        )
        if len(leaders) != len(hosts) or len(set(leaders)) != len(hosts):
            said.append(f"rabbitmq: intake queues led by {leaders}")
        return said
    return said


def _edge(site: Site) -> list[str]:
    found, said = _probe(site, site.groups["edge"], "edge", site.vip)
    holders = [host for host, answer in found.items() if answer["holds"]]
    if len(holders) != 1:
        said.append(f"edge: the virtual address is held by {holders}")
    for host, answer in found.items():
        said += [f"edge: {host}: {problem}" for problem in answer["problems"]]
    return said
