"""Replicas: what each replica that gives figures uses."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, Variable, sheet
from dashboards.look import Query

HERE = 'job="services", service=~"$service", zone=~"$zone", instance=~"$host"'
NAME = "{{service}} {{instance}} {{replica}}"
VARIABLES = (
    Variable("service", "Service", 'label_values(up{job="services"}, service)'),
    Variable("zone", "Zone", 'label_values(up{job="services", service=~"$service"}, zone)'),
    Variable("host", "Host", 'label_values(up{job="services", service=~"$service", zone=~"$zone"}, instance)'),
)


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "replicas",
        "Each replica of a service or worker that gives figures: whether it answers, what it uses, since when it runs.",
        [
            Row("Do they answer?", [answering(), ages(), states()]),
            Row("What they use", [processor(), memory(), files(), waiting()]),
        ],
        VARIABLES,
        ["orders", "hosts", "logs"],
    )


def answering() -> Panel:
    return look.lines(
        "Replicas: desired and answering",
        "Those whose figures are asked for, and those that give them.",
        Query(f"count(up{{{HERE}}})", "desired"),
        Query(f"sum(up{{{HERE}}})", "answering"),
        unit=look.COUNT,
    )


def ages() -> Panel:
    return look.bars(
        "Running for",
        "Time since the process started: a short bar among long ones came back.",
        Query(f"time() - process_start_time_seconds{{{HERE}}}", NAME),
        unit=look.SECONDS,
        limits=look.NO_LIMIT,
        most=None,
    )


def states() -> Panel:
    return look.states(
        "Answering",
        "Whether each replica gave its figures.",
        Query(f"max by (service, instance, replica) (up{{{HERE}}})", NAME),
        words=look.YES_NO,
        width=8,
    )


def processor() -> Panel:
    return look.lines(
        "Processors",
        "Processors in use; a replica in Python uses one at most.",
        Query(f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval])", NAME),
        unit=look.COUNT,
        limits=look.CAPACITY,
        width=12,
    )


def memory() -> Panel:
    return look.lines(
        "Memory",
        "Resident memory of the process.",
        Query(f"process_resident_memory_bytes{{{HERE}}}", NAME),
        unit=look.BYTES,
        width=12,
        down="hosts",
    )


def files() -> Panel:
    return look.lines(
        "Open files of those allowed",
        "Files and connections that are open, of the most that the process may have.",
        Query(f"process_open_fds{{{HERE}}} / process_max_fds{{{HERE}}}", NAME),
        unit=look.RATIO,
        limits=look.CAPACITY,
        width=12,
    )


def waiting() -> Panel:
    return look.lines(
        "Waiting for a connection to the database",
        "Requests that wait now, of all pools of the replica.",
        Query(f"sum by (service, instance, replica) (orders_pool_waiting{{{HERE}}})", NAME),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
        width=12,
        down="pgbouncer",
    )
