"""What follows the load, services' replicas and hosts: policies with all keys, and where replicas are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UP = {"window_seconds": 0, "step": 4, "pause_seconds": 15}
DOWN = {"window_seconds": 300, "step": 1, "pause_seconds": 60}
# As the host that runs a replica tells it every two seconds (roles/service/files/replicas.py).
QUERIES = {
    "cpu": 'avg(rate(freehold_replica_cpu_seconds_total{{service="{name}"}}[6s])) / {cpus}',
    "in_flight": 'avg(avg_over_time(freehold_replica_in_flight{{service="{name}"}}[6s]))',
    "rate": 'avg(rate(freehold_replica_requests_total{{service="{name}"}}[6s]))',
}

# A host takes a minute to come, and what it runs has to move when it goes.
HOSTS_UP = {"window_seconds": 0, "step": 1, "pause_seconds": 120}
HOSTS_DOWN = {"window_seconds": 600, "step": 1, "pause_seconds": 300}
HOST_QUERIES = {
    "cpu": 'avg(sum by (instance) (rate(host_cpu_seconds_total{{instance=~"{hosts}"}}[1m])) '
    '/ on (instance) max by (instance) (host_cpus{{instance=~"{hosts}"}}))',
    "replicas": 'sum(max by (service) (freehold_replicas_recorded{{service=~"{services}"}})) '
    '/ max(freehold_hosts_recorded{{tier="{tier}"}})',
}


def spread(replicas: int, hosts: Sequence[str]) -> dict[str, int]:
    """Return how many of a service's replicas are on each of its hosts: as evenly as can be, the first by name have one more."""
    each, more = divmod(int(replicas), len(hosts))
    return {host: each + (place < more) for place, host in enumerate(sorted(hosts))}


def scaling_policies(services: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the policy of each service that has one: name, hosts, min, max, metrics (name, target, expr, query), up and down."""
    return [
        {
            "name": service["name"],
            "hosts": service["hosts"],
            "min": int(service["scaling"]["min"]),
            "max": int(service["scaling"]["max"]),
            "metrics": [_metric(metric, _known(service)) for metric in service["scaling"]["metrics"]],
            "up": UP | service["scaling"].get("up", {}),
            "down": DOWN | service["scaling"].get("down", {}),
        }
        for service in services
        if service["scaling"]
    ]


def host_policies(
    scaling: Mapping[str, Any], services: Sequence[Mapping[str, Any]], groups: Mapping[str, list[str]], tier: str
) -> list[dict[str, Any]]:
    """Return the policy of a tier's hosts in the form of scaling_policies, with `there`, the hosts that count; none where none is set."""
    # Where a key is missing, role autoscaler says so.
    if not {"min", "max", "metrics"} <= set(scaling):
        return []
    here = [host for host in sorted(groups.get(tier, [])) if host not in groups.get("fleet_leaving", [])]
    scaled = [str(service["name"]) for service in services if service["scaling"] and service["hosts"] == tier]
    known = {
        name: query.format(hosts="|".join(here), services="|".join(scaled), tier=tier)
        for name, query in HOST_QUERIES.items()
    }
    return [
        {
            "name": tier,
            "there": here,
            "min": int(scaling["min"]),
            "max": int(scaling["max"]),
            "metrics": [_metric(metric, known) for metric in scaling["metrics"]],
            "up": HOSTS_UP | scaling.get("up", {}),
            "down": HOSTS_DOWN | scaling.get("down", {}),
        }
    ]


def _known(service: Mapping[str, Any]) -> dict[str, str]:
    return {name: query.format(name=service["name"], cpus=float(service["cpus"])) for name, query in QUERIES.items()}


def _metric(metric: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    name, query = metric["name"], metric.get("query", "")
    return {"name": name, "target": float(metric["target"]), "expr": query or known.get(name, ""), "query": query}


def placed(
    services: Sequence[Mapping[str, Any]], groups: Mapping[str, list[str]], host: str, recorded: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return the services with how many replicas a host has: `replicas` now, `least` and `most`.

    `recorded` has how many there are over all hosts, of those whose number was ever changed.
    """
    return [dict(service) | _here(service, groups, host, recorded) for service in services]


def _here(
    service: Mapping[str, Any], groups: Mapping[str, list[str]], host: str, recorded: Mapping[str, int]
) -> dict[str, int]:
    policy, always = service["scaling"], int(service["replicas"])
    if not policy:
        return {"replicas": always, "least": always, "most": always}
    least, most, hosts = int(policy["min"]), int(policy["max"]), groups[service["hosts"]]
    now = min(max(int(recorded.get(service["name"], least)), least), most)
    return {
        "replicas": spread(now, hosts)[host],
        "least": spread(least, hosts)[host],
        "most": spread(most, hosts)[host],
    }


def narrow_policies(policies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the services whose most is less than their least."""
    return [str(policy["name"]) for policy in policies if policy["max"] < policy["min"]]


def unanswerable_policies(services: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the services whose policy names a metric twice, or one of requests where none come."""
    found = []
    for service in services:
        names = [metric["name"] for metric in service["scaling"].get("metrics", []) if not metric.get("query")]
        every = [metric["name"] for metric in service["scaling"].get("metrics", [])]
        if len(every) > len(set(every)) or ({"in_flight", "rate"} & set(names) and service["kind"] != "web"):
            found.append(str(service["name"]))
    return found


def crowded_policies(policies: Sequence[Mapping[str, Any]], groups: Mapping[str, list[str]], most: int) -> list[str]:
    """Return the services that may have more than so many replicas on a host."""
    return [
        str(policy["name"])
        for policy in policies
        if policy["max"] > int(most) * len(groups.get(policy["hosts"], [policy["name"]]))
    ]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return them by name."""
        return {
            "crowded_policies": crowded_policies,
            "host_policies": host_policies,
            "narrow_policies": narrow_policies,
            "placed": placed,
            "scaling_policies": scaling_policies,
            "unanswerable_policies": unanswerable_policies,
        }
