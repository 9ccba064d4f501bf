"""Hosts: what runs there and answers, processors and memory, disks and network."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import frame, look
from dashboards.frame import Row, sheet, zones
from dashboards.look import Query

FIGURES = 'up{job="node"}'
HERE = 'zone=~"$zone", instance=~"$host"'
NODE = f'job="node", {HERE}'
# A container's own bridges carry what the host's card carries.
CARDS = f'{NODE}, device!~"lo|veth.*|svc-.*"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "hosts",
        "Of each host: what runs there and answers, what uses its processors and memory, its disks and its network.",
        [
            Row("What answers", [hosts_up(), silent(), answering(), parts()]),
            Row(
                "Processors and memory", [processors(), memory(), waiting(), unit_processors(), unit_memory(), clock()]
            ),
            Row("Disks", [full(), free(), inodes(), unit_io()]),
            Row("Network", [received(), sent(), lost()]),
        ],
        [zones(FIGURES), frame.hosts(FIGURES)],
        ["capacity", "logs"],
    )


def hosts_up() -> Panel:
    return look.number(
        "Hosts that answer",
        "Of those chosen: 1 is all of them.",
        Query(f"avg(up{{{NODE}}})"),
        unit=look.RATIO,
        limits=look.ONE_IS_GOOD,
    )


def silent() -> Panel:
    return look.number(
        "Parts that are silent",
        "Of all that is asked on the hosts chosen.",
        Query(f"count(up{{{HERE}}}) - sum(up{{{HERE}}})"),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
    )


def answering() -> Panel:
    return look.states(
        "Hosts",
        "Whether all that runs on a host answers.",
        Query(f"min by (instance) (up{{{HERE}}})", "{{instance}}"),
        words=look.YES_NO,
        width=8,
    )


def parts() -> Panel:
    return look.rows(
        "Parts",
        "What runs where, and whether it answers.",
        Query(f"min by (instance, zone, job, service) (up{{{HERE}}})"),
        columns={"instance": "Host", "zone": "Zone", "job": "Part", "service": "Service", "Value": "Answers"},
        limits=look.ONE_IS_GOOD,
        width=8,
    )


def processors() -> Panel:
    return look.lines(
        "Processors in use",
        "Of those that the host may use.",
        Query(f"instance:cpu_used:ratio{{{HERE}}}", "{{instance}}"),
        unit=look.RATIO,
        limits=look.CAPACITY,
    )


def memory() -> Panel:
    return look.lines(
        "Memory in use",
        "Of what the host may use, without what the kernel gives back.",
        Query(f"instance:memory_used:ratio{{{HERE}}}", "{{instance}}"),
        unit=look.RATIO,
        limits=look.CAPACITY,
        most=1,
        down="capacity",
    )


def waiting() -> Panel:
    return look.lines(
        "Time in which something waited",
        "Share of time in which some process waited for a processor, for memory or for a disk.",
        Query(f"rate(host_waiting_seconds_total{{{HERE}}}[$__rate_interval])", "{{instance}} {{resource}}"),
        unit=look.RATIO,
    )


def unit_processors() -> Panel:
    return look.lines(
        "Processors, by unit",
        "The ten units that use most; a container is a unit.",
        Query(f"topk(10, unit:cpu:rate2m{{{HERE}}})", "{{instance}} {{unit}}"),
        unit=look.COUNT,
    )


def unit_memory() -> Panel:
    return look.lines(
        "Memory, by unit",
        "The ten units whose processes use most, what they share counted once.",
        Query(f"topk(10, unit_memory_bytes{{{HERE}}})", "{{instance}} {{unit}}"),
        unit=look.BYTES,
    )


def clock() -> Panel:
    return look.lines(
        "Clock",
        "How far it is from that of the time servers, as chrony says, else the kernel; 50 ms are an alert.",
        Query(
            f"host_clock_offset_seconds{{{NODE}}} or on (instance) node_timex_offset_seconds{{{NODE}}}",
            "{{instance}}",
        ),
        unit=look.SECONDS,
        least=None,
    )


def unit_io() -> Panel:
    return look.lines(
        "Read and written, by unit",
        "The ten units that have most to do with disks.",
        Query(
            f"topk(10, sum by (instance, unit, direction) (rate(unit_io_bytes_total{{{HERE}}}[$__rate_interval])))",
            "{{instance}} {{unit}} {{direction}}",
        ),
        unit=look.BYTES_RATE,
        width=24,
    )


def full() -> Panel:
    return look.bars(
        "Disks",
        "Share in use.",
        Query(
            f"max by (instance, mountpoint) (instance:filesystem_used:ratio{{{HERE}}})",
            "{{instance}} {{mountpoint}}",
        ),
        unit=look.RATIO,
        down="capacity",
    )


def free() -> Panel:
    return look.lines(
        "Disk that is left",
        "By host and mount point.",
        Query(
            f"min by (instance, mountpoint) (node_filesystem_avail_bytes{{{NODE}}})",
            "{{instance}} {{mountpoint}}",
        ),
        unit=look.BYTES,
        down="capacity",
    )


def inodes() -> Panel:
    return look.lines(
        "Files of those that the disk can have",
        "A disk without room for another file is full as well.",
        Query(
            f"max by (instance, mountpoint) (1 - node_filesystem_files_free{{{NODE}}} / (node_filesystem_files{{{NODE}}} > 0))",
            "{{instance}} {{mountpoint}}",
        ),
        unit=look.RATIO,
        limits=look.CAPACITY,
    )


def received() -> Panel:
    return look.lines(
        "Received",
        "By host.",
        Query(
            f"sum by (instance) (rate(node_network_receive_bytes_total{{{CARDS}}}[$__rate_interval]))", "{{instance}}"
        ),
        unit=look.BYTES_RATE,
    )


def sent() -> Panel:
    return look.lines(
        "Sent",
        "By host.",
        Query(
            f"sum by (instance) (rate(node_network_transmit_bytes_total{{{CARDS}}}[$__rate_interval]))", "{{instance}}"
        ),
        unit=look.BYTES_RATE,
    )


def lost() -> Panel:
    return look.lines(
        "Packets that were lost",
        "Dropped or broken, coming or going.",
        Query(
            f"sum by (instance) (rate(node_network_receive_drop_total{{{CARDS}}}[$__rate_interval]) "
            f"+ rate(node_network_transmit_drop_total{{{CARDS}}}[$__rate_interval]) "
            f"+ rate(node_network_receive_errs_total{{{CARDS}}}[$__rate_interval]) "
            f"+ rate(node_network_transmit_errs_total{{{CARDS}}}[$__rate_interval]))",
            "{{instance}}",
        ),
        unit=look.RATE,
    )
