"""Ask a host what decides whether the platform can run on it; the module of the same name looks there."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure

from ansible.plugins.action import ActionBase

FACTS = ["!all", "!min", "distribution", "dns", "hardware", "platform", "virtual"]
SSH = 22


def ports_of(row: dict[str, Any]) -> list[int]:
    """Return the TCP ports of a row of the access matrix, ranges in full."""
    if row.get("protocol", "tcp") != "tcp":
        return []
    found: list[int] = []
    for ports in row["ports"]:
        first, _, last = str(ports).partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


class ActionModule(ActionBase):
    """Say by the access matrix which ports matter to a host, and have the module look at them, and at all else."""

    _supports_check_mode = True
    _VALID_ARGS = frozenset({"access", "addresses", "tiers", "loopback_ports", "paths", "ntp_servers", "suite", "mark"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `survey`, and what the host's facts are. A host that cannot be asked is no failure: the survey says why."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            for name, arguments in (
                ("ansible.legacy.setup", {"gather_subset": FACTS}),
                ("host_survey", self._look(task_vars)),
            ):
                answer = self._execute_module(name, arguments, task_vars=task_vars)
                if answer.get("failed"):
                    words = [str(answer.get(key, "")).strip() for key in ("msg", "module_stderr", "module_stdout")]
                    return {**result, "survey": {"reached": False, "why": " ".join(word for word in words if word)}}
                result.update(answer)
        except AnsibleConnectionFailure as error:
            return {**result, "survey": {"reached": False, "why": str(error)}}
        result.pop("invocation", None)
        return result

    def _look(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        arguments = self._task.args
        access, addresses = arguments["access"], arguments["addresses"]
        groups, own = task_vars["groups"], task_vars["inventory_hostname"]
        mine = {*task_vars["group_names"], "all"}
        tiers = mine & set(arguments["tiers"])
        ports = {port for row in access if row["to"] in mine for port in ports_of(row)} | set(
            arguments["loopback_ports"]
        )
        wanted: dict[str, set[int]] = {}
        for row in access:
            if tiers & set(row["from"]):
                for host in set(groups.get(row["to"], [])) - {own}:
                    # Of a range the first speaks for all.
                    wanted.setdefault(host, set()).update(
                        ports_of({**row, "ports": [str(p).split("-")[0] for p in row["ports"]]})
                    )
        peers = [
            {"host": host, "address": addresses[host], "ports": sorted(found)} for host, found in sorted(wanted.items())
        ]
        kept = {key: arguments[key] for key in ("paths", "ntp_servers", "suite", "mark")}
        return {**kept, "ports": sorted(ports - {SSH}), "peers": peers}
