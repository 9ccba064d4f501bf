"""What the units of all hosts have used."""

from __future__ import annotations

from tests.support.site import HostError, Site

# A unit may end meanwhile.
PROCESSORS = (
    "find /sys/fs/cgroup/system.slice -path '*.service/cpu.stat' -exec grep -H usage_usec {} + 2> /dev/null || true"
)
# What several processes share, each counts by its part (PSS): programs and files that the kernel keeps for all hosts of a lab.
MEMORY = (
    "sudo sh -c 'cd /proc && grep -H ^Pss: [0-9]*/smaps_rollup; grep -H ^Pss_Anon: [0-9]*/smaps_rollup; grep -H 0:: [0-9]*/cgroup;"
    " grep -H name=systemd [0-9]*/cgroup' 2> /dev/null || true"
)


def _unit(path: str) -> str:
    return path.partition("@")[0].removesuffix(".service")


def processor_seconds(site: Site) -> dict[str, float]:
    """Return the processor time that each unit has used since it started, summed over all hosts."""
    counted: dict[str, float] = {}
    for said in site.ask_all(site.addresses, PROCESSORS).values():
        assert not isinstance(said, HostError), said
        for line in said.splitlines():
            path, _, microseconds = line.rpartition(" ")
            unit = _unit(path.split("/")[-2])
            counted[unit] = counted.get(unit, 0) + int(microseconds) / 1e6
    return counted


def memory_bytes(site: Site) -> tuple[dict[str, int], dict[str, int]]:
    """Return the memory of each unit's processes, summed over all hosts: with its part of what is shared, and its own alone (anonymous)."""
    whole: dict[str, int] = {}
    own: dict[str, int] = {}
    for said in site.ask_all(site.addresses, MEMORY).values():
        assert not isinstance(said, HostError), said
        sizes: dict[tuple[str, str], int] = {}
        for line in said.splitlines():
            process, _, rest = line.partition("/")
            if "_rollup:" in rest:
                _, word, size, _ = rest.replace(":", " ").split()
                sizes[process, word] = 1024 * int(size)
            elif name := next((part for part in rest.split("/") if part.endswith(".service")), ""):
                for counted, word in ((whole, "Pss"), (own, "Pss_Anon")):
                    counted[_unit(name)] = counted.get(_unit(name), 0) + sizes.pop((process, word), 0)
    return whole, own
