"""The command line behind the Makefile: one subcommand a target."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from freehold import cost, docs, follow, history, logs, playbooks, secrets, specs, status, testing
from freehold.lab import Lab, LabError, cache_folder, lab_name
from freehold.playbooks import InventoryError
from freehold.prerequisites import MissingPrerequisitesError
from freehold.progress import ENDED_STATUS, CommandError, console, end_commands, phase
from freehold.token import TokenError, access_token
from freehold.up import LAB_INVENTORY, VAGRANT_INVENTORY, Run, prepare, up

ROOT = Path(__file__).resolve().parent.parent
WORKER = "orders-worker-1"
NOT_REACHED = 255  # as ssh ends where it could not log in


def _say(text: str) -> None:
    console.print(text, markup=False)


def _up(arguments: argparse.Namespace) -> int:
    up(arguments.inventory)
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    prepare(arguments.inventory)
    return 0


def _play(name: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        with phase(name) as current:
            playbooks.run(name, arguments.inventory, current, _state(arguments.inventory) / "log" / f"{name}.log")
        return 0

    return run


def _state(inventory: str) -> Path:
    return Lab(lab_name()).state if inventory == LAB_INVENTORY else ROOT / ".state" / inventory


def _converge(arguments: argparse.Namespace) -> int:
    return _play("validate")(arguments) or _play("site")(arguments)


def _secrets(arguments: argparse.Namespace) -> int:
    if file := secrets.file(arguments.inventory):
        made = secrets.generate(file)
        _say(f"{file.relative_to(ROOT)}: {', '.join(made) + ' added' if made else 'complete'}")
        return 0
    vault = f"inventories/{arguments.inventory}/group_vars/all/vault.yml"
    print(f"---\n# Made up now and kept nowhere. What {vault} lacks belongs there, by ansible-vault; keep what it has.")
    takers = specs.secrets()
    for name, value in secrets.made_up().items():
        print(f'{name}: "{value}"  # {", ".join(takers[name])}')
    return 0


def _down(arguments: argparse.Namespace) -> int:
    if arguments.inventory != LAB_INVENTORY:
        _say(f"INVENTORY={arguments.inventory}: only a lab is taken down by this; its hosts are yours.")
        if arguments.inventory == VAGRANT_INVENTORY:
            _say("Vagrant takes its machines away: cd vagrant && vagrant destroy")
        return 1
    lab = Lab(lab_name())
    with phase(f"down {lab.name}"):
        lab.destroy()
    return 0


def _clean(arguments: argparse.Namespace) -> int:
    if status := _down(arguments):
        return status
    others = other_labs(Lab(lab_name()))
    if others:
        _say(f"The caches stay: {', '.join(others)} use them. Take those labs down first.")
        return 1
    with phase("clean caches"):
        lab = Lab(lab_name())
        images = lab.podman("images", "--quiet", "--filter", "reference=localhost/freehold").split()
        if images:
            lab.podman("rmi", "--force", *sorted(set(images)))
        lab.destroy()
        subprocess.run(["rm", "-rf", str(cache_folder()), str(ROOT / "build")], check=True)
    return 0


def other_labs(lab: Lab) -> list[str]:
    """Return the names of the other labs on this machine."""
    names = lab.podman("network", "ls", "--filter", "label=freehold.lab", "--format", "{{ .Name }}").split()
    return sorted(name.removeprefix("freehold-") for name in names if name != lab.network)


def _ssh(arguments: argparse.Namespace) -> int:
    if not arguments.host:
        raise InventoryError("Say which host: make ssh HOST=data1")
    os.execvp("ssh", playbooks.log_ins(arguments.inventory, arguments.host)[arguments.host])  # noqa: S606


def _orders(arguments: argparse.Namespace) -> int:
    words = shlex.join(shlex.split(arguments.words))
    for host, command in playbooks.log_ins(arguments.inventory, arguments.host or "app").items():
        status = subprocess.run(
            [*command, f"sudo podman exec --interactive {WORKER} orders {words}"], check=False
        ).returncode
        if status != NOT_REACHED:
            return status
        _say(f"{host} does not answer over SSH.")
    return 1


def _status(arguments: argparse.Namespace) -> int:
    return 0 if status.show(arguments.inventory) else 1


def _autoscale(arguments: argparse.Namespace) -> int:
    follow.follow(arguments.inventory, Run(arguments.inventory, 0.0).state)
    return 0


def _history(arguments: argparse.Namespace) -> int:
    return 0 if history.show(arguments.inventory, arguments.service) else 1


def _logs(arguments: argparse.Namespace) -> int:
    wanted = logs.Wanted(arguments.service, arguments.host, arguments.since, arguments.text, arguments.lines)
    if not any((wanted.service, wanted.host, wanted.text)):
        raise InventoryError("Say which: make logs SERVICE=orders-api (or patroni, etcd ...), HOST=data1 or TEXT=words")
    for name, pattern in (("service", r"[A-Za-z0-9@._-]*"), ("host", r"[A-Za-z0-9.-]*"), ("since", r"[0-9]+[smhd]")):
        if not re.fullmatch(pattern, getattr(wanted, name)):
            raise InventoryError(
                f"{name.upper()}={getattr(wanted, name)} is none. Say for example SERVICE=etcd SINCE=15m"
            )
    if not 0 < wanted.lines <= logs.MOST_LINES:
        raise InventoryError(f"LINES={wanted.lines}: between 1 and {logs.MOST_LINES} is right")
    logs.show(arguments.inventory, wanted)
    return 0


def _token(arguments: argparse.Namespace) -> int:
    print(access_token(arguments.inventory))
    return 0


def _cost(arguments: argparse.Namespace) -> int:
    if arguments.requests <= 0 or not 0 <= arguments.orders <= 1 or arguments.answer_kb < 0:
        raise InventoryError(
            f"RATE={arguments.requests:g} ORDERS={arguments.orders:g} ANSWER_KB={arguments.answer_kb:g}: give requests a second "
            "above 0, a share of 0 to 1 and a size of 0 or more, such as RATE=500 ORDERS=0.1 ANSWER_KB=1"
        )
    cost.show(arguments.inventory, cost.Load(arguments.requests, arguments.orders, arguments.answer_kb))
    return 0


def _prices(_arguments: argparse.Namespace) -> int:
    return 0 if cost.refresh() else 1


def _docs(_arguments: argparse.Namespace) -> int:
    for path in docs.write():
        _say(str(path.relative_to(ROOT)))
    return 0


def _test(arguments: argparse.Namespace) -> int:
    return 0 if testing.run(arguments.tier or testing.TIERS, arguments.role) else 1


COMMANDS: dict[str, tuple[str, Callable[[argparse.Namespace], int]]] = {
    "up": ("build or finish the system and prove it", _up),
    "prepare": ("have all that the hosts get from this machine", _prepare),
    "preflight": ("say of each host whether it fits the inventory, and change nothing", _play("preflight")),
    "down": ("remove this lab", _down),
    "clean": ("remove this lab and the caches", _clean),
    "validate": ("check an inventory without touching a host", _play("validate")),
    "converge": ("bring all hosts to what the inventory says", _converge),
    "secrets": ("add missing secrets, or print new ones for a vault", _secrets),
    "status": ("show hosts, versions and who leads what", _status),
    "autoscale": ("have as many app hosts as the load asks for, until it is ended", _autoscale),
    "history": ("show what each service ran when", _history),
    "logs": ("show log lines of all hosts", _logs),
    "token": ("print an access token that may place orders", _token),
    "ssh": ("log in to a host", _ssh),
    "orders": ("run a command of the order service on a host that has it", _orders),
    "cost": ("print an inventory's monthly bill at Amazon beside the managed services'", _cost),
    "prices": ("read the prices of that anew from Amazon's price list", _prices),
    "docs": ("write the roles' READMEs", _docs),
    "test": (f"run tiers of tests: {', '.join(testing.TIERS)} by default", _test),
}


def _end(*_: object) -> None:
    """End with what is under way, which is cleaned up then as well."""
    end_commands()
    sys.exit(ENDED_STATUS)


def main() -> int:
    """Run one subcommand and return the process's exit status."""
    parser = argparse.ArgumentParser(prog="freehold", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (text, run) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--inventory", default=LAB_INVENTORY, help="folder under inventories/")
        command.set_defaults(run=run)
        if name == "ssh":
            command.add_argument("host", nargs="?")
        if name == "orders":
            command.add_argument("words", nargs="?", default="check", help="in one: 'dead-letters list'")
            command.add_argument("--host", default="", help="one of those; else the first that answers")
        if name in {"history", "logs"}:
            command.add_argument("service", nargs="?", default="")
        if name == "logs":
            command.add_argument("--lines", type=int, default=100)
            command.add_argument("--host", default="", help="of this host only")
            command.add_argument("--since", default="1d", help="no older than this, such as 15m")
            command.add_argument("--text", default="", help="with these words")
        if name == "cost":
            command.add_argument("--requests", type=float, default=cost.Load.requests, help="a second, on average")
            command.add_argument("--orders", type=float, default=cost.Load.orders, help="share of them, 0 to 1")
            command.add_argument("--answer-kb", type=float, default=cost.Load.answer_kb, help="an answer's size")
        if name == "test":
            # argparse takes no default among the choices of "*": the empty list stands for all.
            command.add_argument("tier", nargs="*", choices=[*testing.TIERS, *testing.SLOW, []], metavar="TIER")
            command.add_argument("--role", default="", help="only this role's scenario")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    os.chdir(ROOT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        if not (ROOT / "inventories" / arguments.inventory).is_dir():
            there = sorted(path.name for path in (ROOT / "inventories").iterdir())
            raise InventoryError(f"INVENTORY={arguments.inventory}: inventories/ has {', '.join(there)}.")
        return arguments.run(arguments) or 0
    except (CommandError, InventoryError, LabError, MissingPrerequisitesError, TokenError) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("\ninterrupted; run the same command again to go on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main())
