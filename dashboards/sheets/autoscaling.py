"""Autoscaling: services whose replicas follow the load, what asks for more or fewer, and whether hosts follow."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, Variable, deploys, sheet
from dashboards.look import Query

SERVICE = 'service=~"$service"'
WHERE = 'zone=~"$zone", instance=~"$host"'
HERE = f"{SERVICE}, {WHERE}"
NAME = "{{service}} {{instance}} {{replica}}"
VARIABLES = (
    Variable("service", "Service", "label_values(freehold_replicas_wanted, service)"),
    Variable("zone", "Zone", 'label_values(freehold_replicas_wanted{service=~"$service"}, zone)'),
    Variable("host", "Host", 'label_values(freehold_replicas_wanted{service=~"$service", zone=~"$zone"}, instance)'),
)


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "autoscaling",
        "What follows the load, services' replicas and app hosts: how many there are, what asks for more or fewer, and whether it comes.",
        [
            Row("How many, and why", [counts(), ratios()]),
            Row("On the hosts", [by_host(), failed(), read()]),
            Row("Each replica", [processors(), requests()]),
            Row("App hosts", [hosts(), host_ratios()]),
            Row("Autoscalers", [active(), decisions(), failures()]),
        ],
        VARIABLES,
        ["service", "replicas", "capacity", "etcd", "logs"],
        marks=[deploys()],
    )


def counts() -> Panel:
    return look.lines(
        "Replicas: recorded, asked for, ready",
        "Over all hosts: how many the record says, how many the load asks for, how many are ready; and the bounds of the policy.",
        Query(f"max by (service) (freehold_replicas_recorded{{{SERVICE}}})", "{{service}} recorded"),
        Query(f"max by (service) (freehold:replicas_desired{{{SERVICE}}})", "{{service}} asked for"),
        Query(f"sum by (service) (freehold_replicas_ready{{{SERVICE}}})", "{{service}} ready"),
        Query(f"min by (service) (freehold_replicas_least{{{SERVICE}}})", "{{service}} least"),
        Query(f"max by (service) (freehold_replicas_most{{{SERVICE}}})", "{{service}} most"),
        unit=look.COUNT,
        width=12,
        down="service",
    )


def ratios() -> Panel:
    return look.lines(
        "Metrics of their targets",
        "Above 110 % more replicas are asked for, below 90 % fewer where those would do; of several metrics the greatest decides.",
        Query(f"max by (service, metric) (freehold:scaling_ratio{{{SERVICE}}})", "{{service}} {{metric}}"),
        unit=look.RATIO,
        limits=look.TARGET,
        width=12,
    )


def by_host() -> Panel:
    return look.lines(
        "By host, to be and ready",
        "Each host's share of what the record says, and what is ready there.",
        Query(f"sum by (service, instance) (freehold_replicas_wanted{{{HERE}}})", "{{service}} {{instance}} to be"),
        Query(f"sum by (service, instance) (freehold_replicas_ready{{{HERE}}})", "{{service}} {{instance}} ready"),
        unit=look.COUNT,
        width=12,
        down="replicas",
    )


def failed() -> Panel:
    return look.lines(
        "Starts and stops that failed",
        "Within five minutes. A host tries again.",
        Query(
            f"sum by (service, instance) (increase(freehold_replicas_failures_total{{{HERE}}}[5m]))",
            "{{service}} {{instance}}",
        ),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
        width=6,
        down="logs",
    )


def read() -> Panel:
    return look.lines(
        "Age of what hosts know",
        "Time since each host read the record. Each change is told at once, and without one it is read again after 15 s.",
        Query(f"time() - max by (instance) (freehold_replicas_read_timestamp_seconds{{{WHERE}}})", "{{instance}}"),
        unit=look.SECONDS,
        limits=look.RECORD_SECONDS,
        width=6,
        down="etcd",
    )


def processors() -> Panel:
    return look.lines(
        "Processors of each replica",
        "What its container uses.",
        Query(f"rate(freehold_replica_cpu_seconds_total{{{HERE}}}[$__rate_interval])", NAME),
        unit=look.COUNT,
        width=12,
        down="replicas",
    )


def requests() -> Panel:
    return look.lines(
        "Requests under way in each replica",
        "What it works on now, as its host's proxy counts it. A worker has none.",
        Query(f"max by (service, instance, replica) (freehold_replica_in_flight{{{HERE}}})", NAME),
        unit=look.COUNT,
        width=12,
        down="service",
    )


def hosts() -> Panel:
    return look.lines(
        "App hosts: recorded, asked for, there",
        "How many the record says, how many the load asks for, how many answer; and the bounds of the policy. `make autoscale` carries it out.",
        Query("max by (tier) (freehold_hosts_recorded)", "{{tier}} recorded"),
        Query("max by (tier) (freehold:hosts_desired)", "{{tier}} asked for"),
        Query("max by (tier) (freehold:hosts_present)", "{{tier}} there"),
        Query("min by (tier) (freehold_hosts_least)", "{{tier}} least"),
        Query("max by (tier) (freehold_hosts_most)", "{{tier}} most"),
        unit=look.COUNT,
        width=12,
        down="capacity",
    )


def host_ratios() -> Panel:
    return look.lines(
        "Metrics of their targets, app hosts",
        "Above 110 % more hosts are asked for, below 90 % fewer where those would do; of several metrics the greatest decides.",
        Query('max by (tier, metric) (freehold:scaling_ratio{tier!=""})', "{{tier}} {{metric}}"),
        unit=look.RATIO,
        limits=look.TARGET,
        width=12,
        down="replicas",
    )


def active() -> Panel:
    return look.states(
        "Active",
        "Which autoscaler decides: it holds the lease in etcd.",
        Query("max by (instance) (freehold_autoscaler_active)", "{{instance}}"),
        words=look.HOLDS,
        width=8,
        down="etcd",
    )


def decisions() -> Panel:
    return look.lines(
        "Decisions",
        "Changes of the record within five minutes.",
        Query(
            f"sum by (service, direction) (increase(freehold_autoscaler_decisions_total{{{SERVICE}}}[5m]))",
            "{{service}} {{direction}}",
        ),
        Query(
            'sum by (tier, direction) (increase(freehold_autoscaler_decisions_total{tier!=""}[5m]))',
            "{{tier}} {{direction}}",
        ),
        unit=look.COUNT,
    )


def failures() -> Panel:
    return look.lines(
        "Failures",
        "Rounds that failed within five minutes, by what did. A round that fails changes nothing.",
        Query(
            "sum by (instance, kind) (increase(freehold_autoscaler_failures_total[5m]))",
            "{{instance}} {{kind}}",
        ),
        unit=look.COUNT,
        limits=look.FAILED_ROUNDS,
        down="logs",
    )
