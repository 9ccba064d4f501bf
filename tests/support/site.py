"""The system under test: where it answers, what its hosts are, and how to ask one of them."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from freehold import artifacts, playbooks, secrets
from freehold.lab import Lab, lab_name
from freehold.token import request as request_token

ROOT = Path(__file__).resolve().parent.parent.parent
SSH_SECONDS = 20
MACHINE = "smoke"


class HostError(Exception):
    """A host could not be asked, or what was asked failed there."""


@dataclass(frozen=True)
class Site:
    """A running system, as its inventory describes it."""

    lab: Lab
    vip: str
    authority: Path
    issuer: str
    addresses: Mapping[str, str]
    inventory: str
    log_ins: Mapping[str, list[str]]
    groups: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where users reach it."""
        return f"https://{self.vip}"

    def secret(self, name: str) -> str:
        """Return one of its secrets."""
        if file := secrets.file(self.inventory):
            return str(yaml.safe_load(file.read_text(encoding="utf-8"))[name])
        return str(next(iter(playbooks.variables(self.inventory, "all", name).values()))[name])

    def token(self) -> str:
        """Return an access token of a machine that is a customer, valid for five minutes."""
        return request_token(self.issuer, self.authority, MACHINE, self.machine_secret())

    def machine_secret(self) -> str:
        """Return what that machine logs in with."""
        return self.secret(f"keycloak_{MACHINE}_secret")

    def ask(self, host: str, command: str, stdin: str = "", seconds: float = SSH_SECONDS) -> str:
        """Return what a command printed on a host; raises HostError with its words."""
        ssh, *login = self.log_ins[host]
        full = [ssh, "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", *login, command]
        try:
            result = subprocess.run(full, input=stdin, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise HostError(f"{host}: no answer within {seconds} s to {command}") from error
        if result.returncode:
            raise HostError(f"{host}: {command}: {result.stderr.strip() or result.stdout.strip()}")
        return result.stdout

    def ask_all(self, hosts: Iterable[str], command: str, stdin: str = "") -> dict[str, str | HostError]:
        """Return each host's answer, or why it has none; all are asked at once."""
        names = list(hosts)

        def one(host: str) -> str | HostError:
            try:
                return self.ask(host, command, stdin)
            except HostError as error:
                return error

        with ThreadPoolExecutor(max(len(names), 1)) as pool:
            return dict(zip(names, pool.map(one, names), strict=True))

    def sql(self, statement: str, database: str = "orders") -> list[list[str]]:
        """Return the rows that a statement gives on the primary, as its superuser."""
        command = "sudo -u postgres psql -XAtq -v ON_ERROR_STOP=1 -F '|' -d " + shlex.quote(database)
        printed = self.ask(self.primary(), command, statement, seconds=60)
        return [line.split("|") for line in printed.splitlines() if line]

    def primary(self) -> str:
        """Return the host of the PostgreSQL primary; raises HostError where there is not just one."""
        question = "sudo -u postgres psql -XAtqc 'SELECT NOT pg_is_in_recovery()'"
        answers = self.ask_all(self.groups["postgres"], question)
        found = [host for host, answer in answers.items() if isinstance(answer, str) and answer.strip() == "t"]
        if len(found) != 1:
            raise HostError(f"PostgreSQL has {len(found)} primaries: {answers}")
        return found[0]

    def vip_holder(self) -> str:
        """Return the edge host that holds the virtual address; raises HostError where not just one does."""
        answers = self.ask_all(self.groups["edge"], f"ip -4 -oneline address show to {self.vip}")
        found = [host for host, answer in answers.items() if isinstance(answer, str) and answer.strip()]
        if len(found) != 1:
            raise HostError(f"{len(found)} hosts hold the address {self.vip}: {answers}")
        return found[0]


def load() -> Site:
    """Return the system of FREEHOLD_INVENTORY; where that is a lab, it is the one of FREEHOLD_LAB or of this checkout."""
    inventory = os.environ.get("FREEHOLD_INVENTORY", "lab")
    lab = Lab(lab_name())
    names = ("address", "topology_vip", "topology_state_dir", "topology_issuer", "group_names")
    found = playbooks.variables(inventory, "all", *names)
    groups: dict[str, list[str]] = {}
    for host, values in sorted(found.items()):
        for group in values["group_names"]:
            groups.setdefault(group, []).append(host)
    first = next(iter(found.values()))
    return Site(
        lab=lab,
        vip=first["topology_vip"],
        authority=Path(first["topology_state_dir"]) / "pki" / "ca.crt",
        issuer=first["topology_issuer"],
        addresses={host: values["address"] for host, values in found.items()},
        inventory=inventory,
        log_ins=playbooks.log_ins(inventory, "all"),
        groups=groups,
    )


def grafana_given(site: Site) -> bool:
    """Return whether a source gave Grafana's program, without which its role does nothing."""
    return (site.authority.parents[1] / "artifacts" / artifacts.described()["grafana"].file).exists()
