"""`make autoscale`: have as many app hosts as the autoscaler records, for as long as this runs.

The autoscaler decides on the ops hosts, which hold no key to another host; this carries it out where the keys are, by ansible/scale.yml.
It compares what is wanted with what there is, so that nothing depends on having heard of a decision.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from freehold import playbooks
from freehold.fleet import ARRIVING, LEAVING, LOST, PRESENT, Fleet, FleetHost
from freehold.lab import control_path
from freehold.progress import CommandError, console, phase

TIER = "app"
POLL_SECONDS = 3
NOBODY = "no autoscaler is active, or none can be asked: all stays as it is"
ANSWER_SECONDS = 8
# A host that was never ready within so many runs goes, and after a pause, each time twice as long, another one is tried.
RUNS = 2
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 60, 1800
# For so long there is one more in the place of a declared host that is back: one that starts again and again takes none along.
RETURN_SECONDS = 300
SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=3", "ServerAliveInterval=2", "ControlMaster=auto", "ControlPersist=60")
NOT_REACHED = 255  # as ssh ends where it could not log in
REASON_LENGTH = 200


@dataclass(frozen=True)
class Wanted:
    """What the active autoscaler says of a tier."""

    hosts: int
    most: int
    reason: str
    dead: frozenset[str] | None
    """Hosts of which nothing answered anybody for minutes; None where that is not known."""

    @classmethod
    def read(cls, told: dict[str, Any]) -> Wanted | None:
        """Return what an autoscaler's answer says, None where it is not the active one; raises ValueError where it has another form."""
        tier = told["tiers"].get(TIER) if told["active"] is True else None
        if tier is None:
            return None
        dead = tier["dead"]
        right = [isinstance(tier[key], int) for key in ("hosts", "most")] + [isinstance(tier["reason"], str)]
        if not all(right) or not (dead is None or all(isinstance(name, str) for name in dead)):
            raise ValueError(f"{tier}")
        reason = "".join(sign for sign in tier["reason"] if sign.isprintable())[:REASON_LENGTH]
        return cls(tier["hosts"], tier["most"], reason, None if dead is None else frozenset(dead))


@dataclass(frozen=True)
class Step:
    """What is to be done: so many hosts, without those that are lost; or nothing, and why."""

    number: int
    lost: tuple[str, ...] = ()
    needed: bool = True
    remark: str = ""


def step(wanted: Wanted, declared: Sequence[str], added: Sequence[FleetHost], standby: Sequence[str] = ()) -> Step:
    """Return what is to be done where these hosts are declared and were added.

    A dead added host is replaced, one after the other. A declared one never goes: as long as it is dead there is one more. Where several
    are dead at once, and half of all or more, it is more likely that they are not reached: none goes then, as where it is not known.
    """
    staying = [host for host in added if host.state in {ARRIVING, PRESENT}]
    there = len(declared) + len(staying)
    known = {*declared, *(host.name for host in staying if host.state == PRESENT)}
    dead = (wanted.dead or frozenset()) & known
    number, remark = max(wanted.hosts, len(declared)), ""
    lost: tuple[str, ...] = ()
    if wanted.dead is None:
        number = max(number, there)
    elif len(dead) > 1 and 2 * len(dead) >= there:
        remark = (
            f"{', '.join(sorted(dead))} do not answer, half of all or more: that is rather the network, and none goes"
        )
        number = max(number, there)
    else:
        lost = tuple(sorted(host.name for host in staying if host.name in dead)[:1])
        number += len(dead & set(declared))
    if number > wanted.most:
        remark = (
            remark or f"{number} are needed with those in place of dead ones, and at most {wanted.most} are allowed"
        )
        number = max(wanted.most, len(declared))
    unsettled = [
        host for host in added if host.state in {ARRIVING, LEAVING} or (host.state == LOST and host.name not in standby)
    ]
    return Step(number, lost, bool(lost or unsettled) or number != there, remark)


class Follower:
    """Carries out what the autoscaler decides, for one inventory."""

    def __init__(self, inventory: str, state: Path) -> None:
        """Read the inventory; raises InventoryError where it cannot be read, has no autoscaler or no policy for hosts."""
        self.inventory = inventory
        self.state = state
        self.fleet = Fleet(state)
        self.declared: list[str] = []
        self.standby: list[str] = []
        self.seen_dead: dict[str, float] = {}
        self._log_ins: dict[str, list[str]] = {}
        self._port = 0
        self._said: dict[str, str] = {}
        self._reach: dict[str, list[str]] = {}
        self._runs = 0
        self._pause = PAUSE_SECONDS
        self._not_before = 0.0
        self._read()

    def _read(self) -> None:
        hosts = playbooks.variables(self.inventory, "all", "group_names", "topology_host_policies", "topology_ports")
        first = next(iter(hosts.values()))
        if not first["topology_host_policies"]:
            raise playbooks.InventoryError(
                f"inventories/{self.inventory}: topology_host_scaling is empty, so nothing decides how many app hosts there are to be. Set "
                "it in group_vars/all and run `make converge`; docs/autoscaling.md has an example."
            )
        self._port = int(first["topology_ports"]["autoscaler"])
        groups = {host: set(found["group_names"]) for host, found in hosts.items()}
        self.declared = [host for host, found in groups.items() if TIER in found and "fleet_added" not in found]
        self.standby = [host for host, found in groups.items() if "standby" in found]
        self._log_ins = self._commands("autoscaler")
        self._reach = {}

    def _commands(self, hosts: str) -> dict[str, list[str]]:
        """Return for each host the command that logs in, over a connection that is kept; the last word is the address."""
        path = Path(control_path(f"{self.state.name}-follow"))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = [word for option in (*SSH_OPTIONS, f"ControlPath={path}") for word in ("-o", option)]
        found = playbooks.log_ins(self.inventory, hosts)
        return {host: [*command[:-1], *options, command[-1]] for host, command in found.items()}

    def run(self) -> None:
        """Go round for good."""
        policy = f"{len(self.declared)} declared, asking {', '.join(self._log_ins)}"
        self._tell(f"following the number of {TIER} hosts: {policy}")
        while True:
            self.round()
            time.sleep(POLL_SECONDS)

    def round(self) -> None:
        """Compare once what is wanted with what there is, and do what is missing."""
        wanted = self._ask()
        if wanted is None:
            self._say("autoscaler", NOBODY)
            return
        if self._said.get("autoscaler"):
            self._tell("an autoscaler is active again")
        self._say("autoscaler", "")
        wanted = self._checked(wanted)
        next_step = self._step(wanted)
        self._say("number", next_step.remark)
        busy = next_step.needed and self._busy()
        self._say("others", "another playbook changes these hosts: waiting for its end" if busy else "")
        if not next_step.needed:
            self._runs, self._pause, self._not_before = 0, PAUSE_SECONDS, 0.0
        elif not busy and time.monotonic() >= self._not_before:
            self._do(next_step, wanted)

    def _step(self, wanted: Wanted) -> Step:
        return step(wanted, self.declared, self.fleet.hosts().get(TIER, []), self.standby)

    def _checked(self, wanted: Wanted) -> Wanted:
        """Return what is wanted with those alone as dead that do not answer here, either, or did not lately and never go."""
        if wanted.dead is None:
            return wanted
        names = {*self.declared, *(host.name for host in self.fleet.hosts().get(TIER, []))}
        dead = {name for name in wanted.dead & names if not self._reached(name)}
        now = time.monotonic()
        self.seen_dead |= dict.fromkeys(dead & set(self.declared), now)
        returned = {name for name, at in self.seen_dead.items() if now - at < RETURN_SECONDS}
        return replace(wanted, dead=frozenset(dead | returned))

    def _reached(self, host: str) -> bool:
        """Return whether a host that others take for dead can be logged in to."""
        try:
            if host not in self._reach:
                self._reach |= self._commands(host)
            command = self._reach[host]
            done = subprocess.run([*command, "true"], capture_output=True, check=False, timeout=ANSWER_SECONDS)
        except (subprocess.TimeoutExpired, playbooks.InventoryError):
            return False
        reached = done.returncode != NOT_REACHED
        self._say(host, f"{host} gives no figures and answers here: it is not taken for dead" if reached else "")
        return reached

    def _busy(self) -> bool:
        """Return whether a playbook has the lock of ansible/plugins/callback/one_at_a_time.py: afterwards other things may be missing."""
        path = self.state / "locks" / "playbook"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def _do(self, next_step: Step, wanted: Wanted) -> None:
        lost = f", {', '.join(next_step.lost)} lost" if next_step.lost else ""
        self._tell(f"{next_step.number} {TIER} hosts are asked for ({wanted.reason}){lost}")
        self.fleet.lose(TIER, next_step.lost)
        self._reach = {}
        started = time.monotonic()
        problem = self._scale(next_step.number, "autoscale")
        hosts = self.fleet.hosts().get(TIER, [])
        took = f"after {time.monotonic() - started:.0f} s"
        there = ", ".join([*self.declared, *(host.name for host in hosts if host.state == PRESENT)])
        if not self._step(replace(wanted, dead=(wanted.dead or frozenset()) - set(next_step.lost))).needed:
            self._tell(f"{took} there are {there}{'. ' + problem if problem else ''}")
            return
        self._runs += 1
        self._tell(f"{took} there are {there}, and not what is asked for. {problem}")
        arriving = [host.name for host in hosts if host.state == ARRIVING]
        if self._runs < RUNS:
            self._not_before = time.monotonic() + POLL_SECONDS
        else:
            if arriving:
                self._tell(f"{', '.join(arriving)} was never ready and goes")
                self._scale(next_step.number - len(arriving), "autoscale-removal")
            self._tell(f"the next try is in {self._pause} s")
            self._runs, self._not_before = 0, time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        try:
            self._read()  # hosts may have been declared since
        except playbooks.InventoryError as error:
            self._tell(str(error))

    def _scale(self, number: int, log: str) -> str:
        """Run scale.yml and return what went wrong: a host that does not answer is no failure of those that do."""
        try:
            with phase("scale") as current:
                more = json.dumps({"app_hosts": number, "app_hosts_recorded": True})
                playbooks.run("scale", self.inventory, current, self.state / "log" / f"{log}.log", "-e", more)
        except CommandError as error:
            return str(error)
        return ""

    def _ask(self) -> Wanted | None:
        """Return what the active autoscaler says, None where none does."""
        for host, command in list(self._log_ins.items()):
            asked = [*command, f"curl -sS --max-time 2 http://127.0.0.1:{self._port}/hosts"]
            try:
                printed = subprocess.run(
                    asked, capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS, stdin=subprocess.DEVNULL
                ).stdout
                wanted = Wanted.read(json.loads(printed))
            except subprocess.SubprocessError:
                continue
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                self._say(host, f"{host} answers what nobody understands: {error!r}")
                continue
            if wanted is not None:
                # The next question goes there first.
                self._log_ins = {host: command} | self._log_ins
                return wanted
        return None

    def _say(self, what: str, remark: str) -> None:
        """Tell what is unlike what was told last of the same matter."""
        if remark and remark != self._said.get(what):
            self._tell(remark)
        self._said[what] = remark

    def _tell(self, text: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False, soft_wrap=True)


def follow(inventory: str, state: Path) -> None:
    """Follow until this process is ended; raises InventoryError where another one of this controller does so already."""
    lock = state / "locks" / "autoscale"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="utf-8") as file:
        try:
            # Of this process alone: what it starts does not keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise playbooks.InventoryError(
                f"inventories/{inventory}: `make autoscale` runs already for it on this machine. Let it, or end it first: pgrep -af 'freehold autoscale'"
            ) from None
        Follower(inventory, state).run()
