"""Run Ansible for a person: a counter of tasks while it runs, the recap afterwards, the output in a log."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from freehold.lab import cache_folder
from freehold.progress import CommandError, Phase

ROOT = Path(__file__).resolve().parent.parent
TASK = re.compile(r"^(?:TASK|RUNNING HANDLER) \[(.*)\] \**$")
FAILURE = re.compile(r"^(?:fatal|failed): \[([^]]+?)(?: -> [^]]+)?\].*=> ?(.*)$")
RECAP = re.compile(r"^(\S+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+) +skipped=(\d+)")


class InventoryError(Exception):
    """The inventory cannot be read; the text is Ansible's own."""


@dataclass(frozen=True)
class HostRecap:
    """What a playbook did on a host, as Ansible counts it."""

    ok: int
    changed: int
    unreachable: int
    failed: int
    skipped: int

    @property
    def tasks(self) -> int:
        """Return how many tasks the host saw, whatever became of them."""
        return self.ok + self.failed + self.skipped


@dataclass
class _Output:
    """Follows what ansible-playbook prints: tasks, failures with their hosts, the recap."""

    phase: Phase
    tasks: int = 0
    hosts: dict[str, HostRecap] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    _host: str = ""
    _block: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        """Take one line."""
        if self._host and not line.startswith(" "):
            self._end_of_failure()
        if task := TASK.match(line):
            self.tasks += 1
            self.phase.step(task[1])
        elif failure := FAILURE.match(line):
            self._host, self._block = failure[1], [failure[2]]
        elif recap := RECAP.match(line):
            self.hosts[recap[1]] = HostRecap(*(int(number) for number in recap.groups()[1:]))
        elif self._host:
            self._block.append(line)

    def _end_of_failure(self) -> None:
        result = yaml.safe_load("\n".join(self._block)) or {}
        parts = [str(result.get(key, "")).strip() for key in ("msg", "stderr")] if isinstance(result, dict) else []
        text = "\n".join(part for part in parts if part) or "\n".join(self._block)
        self.failures.setdefault(f"{self.phase.text}\n{text}", []).append(self._host)
        self._host = ""

    def summary(self) -> str:
        """Return each failure once, with its task and the hosts that it befell."""
        return "\n\n".join(f"{', '.join(hosts)}: {text}" for text, hosts in self.failures.items())


def environment(**changes: str) -> dict[str, str]:
    """Return the environment for Ansible's programs: plain output, this project's configuration."""
    return {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **changes}


def run(
    name: str, inventory: str, phase: Phase, log: Path, *arguments: str, env: dict[str, str] | None = None
) -> dict[str, HostRecap]:
    """Run a playbook and return its recap by host; raises CommandError where it fails.

    The bar's length is the number of tasks that the same playbook took the last time on this machine.
    """
    file = cache_folder() / "tasks" / f"{name}.{'-'.join(a for a in arguments if '{' not in a).replace('/', '_')[-40:]}"
    phase.done, phase.total = 0, int(file.read_text()) if file.exists() else 0
    output = _Output(phase)
    command = ["ansible-playbook", "-i", f"inventories/{inventory}", *arguments, f"ansible/{name}.yml"]
    try:
        phase.run(command, log, env=environment(**(env or {})), cwd=ROOT, on_line=output)
    except CommandError as error:
        raise CommandError(error.command, error.status, error.log, output.summary()) from None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(str(output.tasks))
    phase.total, phase.text = 0, f"tasks on {len(output.hosts)} hosts"
    return output.hosts


def ask(inventory: str, hosts: str, module: str, arguments: str, *, become: bool = True) -> dict[str, dict[str, Any]]:
    """Return what a module answers on each host, those that fail or cannot be reached included.

    Raises InventoryError where the inventory cannot be read or has no such host.
    """
    become_or_not = ["--become"] if become else []
    return _answers(inventory, hosts, ["ansible", hosts, "-m", module, "-a", arguments, *become_or_not])


def variables(inventory: str, hosts: str, *names: str) -> dict[str, dict[str, Any]]:
    """Return variables of hosts as a play would see them; one that is not defined is an empty text.

    Raises InventoryError where the inventory cannot be read or has no such host.
    """
    asked = json.dumps({"asked_hosts": hosts, "asked_names": names})
    answers = _answers(inventory, hosts, ["ansible-playbook", "-e", asked, "ansible/variables.yml"])
    return {host: answer["msg"] for host, answer in answers.items()}


def answers(inventory: str, hosts: str, name: str) -> dict[str, dict[str, Any]]:
    """Return what the last task of a playbook answered on each of its hosts, which are these; one that fails says why in `msg`.

    Raises InventoryError where the inventory cannot be read or has no such host.
    """
    return _answers(inventory, hosts, ["ansible-playbook", f"ansible/{name}.yml"])


def log_ins(inventory: str, hosts: str) -> dict[str, list[str]]:
    """Return for each host the command that logs in to it, as Ansible does; the last word is the address."""
    names = ("ansible_host", "ansible_user", "ansible_ssh_private_key_file", "ansible_ssh_common_args")
    commands = {}
    for name, found in sorted(variables(inventory, hosts, *names).items()):
        host, user, key, options = (found[each] for each in names)
        login = [*(["-l", user] if user else []), *(["-i", key] if key else [])]
        commands[name] = ["ssh", *shlex.split(options), *login, host or name]
    return commands


def _answers(inventory: str, hosts: str, command: list[str]) -> dict[str, dict[str, Any]]:
    """Return what the last task of a command of Ansible's answered on each host."""
    env = environment(ANSIBLE_STDOUT_CALLBACK="ansible.posix.json", ANSIBLE_LOAD_CALLBACK_PLUGINS="1")
    full = [command[0], "-i", f"inventories/{inventory}", *command[1:]]
    printed = subprocess.run(full, capture_output=True, text=True, check=False, env=env, cwd=ROOT)
    try:
        plays = json.loads(printed.stdout)["plays"]
    except json.JSONDecodeError:
        raise InventoryError(f"inventories/{inventory}, hosts {hosts}: {printed.stderr.strip()}") from None
    answers: dict[str, dict[str, Any]] = {}
    for play in plays:
        for task in play["tasks"]:
            answers |= task["hosts"]
    if not answers:
        raise InventoryError(f"inventories/{inventory} has no host {hosts}.")
    return answers
