"""Hosts that scaling added to those that an inventory declares: which there are, and which come and go.

They stand in `hosts.json` of the inventory's state folder. The inventory plugin lab_state reads it, so that every playbook knows them;
ansible/scale.yml changes it, first of all, so that what was broken off is completed by the next run.
"""

from __future__ import annotations

import ipaddress
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count as numbers
from pathlib import Path
from typing import Any

from freehold.lab import locked

# Not configured yet; configured; on its way out, and of no use to anybody any more; the same, but dead, so that it is not taken back.
ARRIVING, PRESENT, LEAVING, LOST = "arriving", "present", "leaving", "lost"
GOING = (LEAVING, LOST)


class FleetError(Exception):
    """What cannot be had, in words for the one who asks for it."""


@dataclass(frozen=True)
class FleetHost:
    """A host that scaling added."""

    name: str
    zone: str
    address: str
    state: str = ARRIVING


@dataclass(frozen=True)
class Place:
    """Where new hosts of a tier may be: what the inventory declares, and what is free beside it."""

    tier: str
    declared: Mapping[str, str]
    """Declared hosts of the tier, each with its zone. They never go."""
    zones: Sequence[str] = ()
    """Zones of hosts that a provider makes; empty where hosts are not made."""
    network: str = ""
    """Where a provider's hosts have their addresses."""
    taken: Sequence[str] = ()
    """Addresses and names that others have."""
    standby: Sequence[FleetHost] = ()
    """Hosts that wait to be taken in."""

    def spare(self, hosts: Iterable[FleetHost]) -> list[FleetHost]:
        """Return what may be added to these hosts, of which each zone has at most one that a provider would make."""
        known = {host.name for host in hosts}
        waiting = [host for host in self.standby if host.name not in known]
        if not self.zones:
            return waiting
        used = {*self.taken, *(host.address for host in hosts), *known}
        name = next(name for name in (f"{self.tier}{number}" for number in numbers(1)) if name not in used)
        free = (str(address) for address in ipaddress.ip_network(self.network).hosts() if str(address) not in used)
        address = next(free, "")
        return waiting + ([FleetHost(name, zone, address) for zone in self.zones] if address else [])


def resize(hosts: Sequence[FleetHost], wanted: int, place: Place) -> list[FleetHost]:
    """Return the hosts beside the declared ones where the tier is to have so many; raise FleetError where it cannot.

    New ones come where a zone has fewest, and go where it has most; what is not configured yet goes first. What is on its way out and not
    lost may stay, and what waits is taken in before another is made.
    """
    if wanted < len(place.declared):
        raise FleetError(
            f"{place.tier}: {wanted} hosts are asked for, and {', '.join(place.declared)} are declared, which never go: "
            f"ask for {len(place.declared)} at least, or take one out of the inventory."
        )
    found = list(hosts)
    while True:
        staying = [host for host in found if host.state not in GOING]
        zones = Counter([*place.declared.values(), *(host.zone for host in staying)])
        missing = wanted - len(place.declared) - len(staying)
        if not missing:
            return found
        if missing < 0:
            victim = max(
                staying, key=lambda host: (host.state == ARRIVING, zones[host.zone], len(host.name), host.name)
            )
            found[found.index(victim)] = replace(victim, state=LEAVING)
            continue
        leaving = [host for host in found if host.state == LEAVING]
        made = leaving + list(place.standby)
        waiting = {host.name for host in place.standby}
        # One that was dead may be back: the last choice.
        lost = [host for host in found if host.state == LOST and host.name in waiting]
        spare = leaving + place.spare(found) or lost
        if not spare:
            raise FleetError(f"{place.tier}: {missing} more are asked for, and none is left to be had.")
        chosen = min(spare, key=lambda host: (zones[host.zone], host not in made, host.zone, host.name))
        found = [host for host in found if host.name != chosen.name] + [replace(chosen, state=ARRIVING)]


class Fleet:
    """The file that says which hosts scaling added."""

    def __init__(self, folder: Path) -> None:
        """Name the inventory's state folder; nothing is read."""
        self.file = folder / "hosts.json"
        self._lock = folder / "locks" / "hosts"

    def hosts(self) -> dict[str, list[FleetHost]]:
        """Return the added hosts by tier."""
        if not self.file.exists():
            return {}
        found = json.loads(self.file.read_text(encoding="utf-8"))
        return {tier: [FleetHost(**host) for host in hosts] for tier, hosts in found.items()}

    def resize(self, wanted: int, place: Place, *, dry: bool = False) -> tuple[list[FleetHost], list[FleetHost]]:
        """Have as many hosts as are wanted in the record; return those before and those now.

        What was added before may stand among the declared hosts.
        """
        with locked(self._lock):
            known = self.hosts()
            before = known.get(place.tier, [])
            added = {host.name for host in before}
            declared = {name: zone for name, zone in place.declared.items() if name not in added}
            after = resize(before, wanted, replace(place, declared=declared))
            if not dry:
                self._write(known | {place.tier: after})
        return before, after

    def lose(self, tier: str, names: Iterable[str]) -> bool:
        """Record that hosts are dead, and return whether any was not so before: they go, and others come by the next `resize`."""
        lost = set(names)
        with locked(self._lock):
            known = self.hosts()
            before = known.get(tier, [])
            after = [replace(host, state=LOST) if host.name in lost else host for host in before]
            self._write(known | {tier: after})
        return before != after

    def settle(self, tier: str, name: str) -> bool:
        """Record that a host that was to come is there, or that one that was to go is gone; return whether it was."""
        with locked(self._lock):
            known = self.hosts()
            before = known.get(tier, [])
            after = [
                replace(host, state=PRESENT) if host.name == name else host
                for host in before
                if host.name != name or host.state not in GOING
            ]
            self._write(known | {tier: after})
        return before != after

    def into(self, inventory: Any) -> None:  # noqa: ANN401
        """Give an inventory of Ansible's the added hosts: in their tier and `fleet_added`, or what is said of their state."""
        for group in ("fleet_added", "fleet_arriving", "fleet_leaving"):
            inventory.add_group(group)
        for tier, hosts in self.hosts().items():
            for host in hosts:
                groups = {ARRIVING: [tier, "fleet_arriving"], PRESENT: [tier]}.get(host.state, ["fleet_leaving"])
                for group in ["fleet_added", *groups]:
                    inventory.add_group(group)
                    inventory.add_host(host.name, group)
                # Of no tier any more where it leaves, which would say.
                inventory.set_variable(host.name, "fleet_tier", tier)
                inventory.set_variable(host.name, "zone", host.zone)
                inventory.set_variable(host.name, "address", host.address)

    def _write(self, hosts: Mapping[str, Sequence[FleetHost]]) -> None:
        kept = {
            tier: [asdict(host) for host in sorted(found, key=lambda host: host.name)] for tier, found in hosts.items()
        }
        text = json.dumps({tier: found for tier, found in kept.items() if found}, indent=2) + "\n"
        if self.file.exists() and self.file.read_text(encoding="utf-8") == text:
            return
        temporary = self.file.with_suffix(".new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.file)
