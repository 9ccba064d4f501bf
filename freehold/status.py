"""`make status`: the hosts, what runs on them, who leads what. Asked on all hosts at once; one that is away is shown so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from freehold import playbooks
from freehold.progress import console

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "freehold/probe.py"
NOBODY = "nobody: alertmanager_receivers is empty, see docs/observability.md"
RUNNING = {"running", "listening", "exited"}

FIGURES = ("recorded", "least", "most")

Answers = dict[str, dict[str, Any]]


def show(inventory: str) -> bool:
    """Print the status and return whether every host answered and nothing was seen to be wrong."""
    hosts = playbooks.variables(
        inventory,
        "all",
        "address",
        "zone",
        "group_names",
        "topology_vip",
        "topology_state_dir",
        "alertmanager_receivers",
    )
    first = next(iter(hosts.values()))
    vip = first["topology_vip"]
    script = f"{PROBE} status {vip} executable=python3"
    said = playbooks.ask(inventory, "all", "ansible.builtin.script", script)
    answers = {host: _read(answer) for host, answer in said.items()}
    console.print(_table(hosts, answers))
    complaints = []
    for part, (leader, complaint) in _leaders(hosts, answers, vip).items():
        console.print(f"{part:<22} {leader}", markup=False)
        complaints += [complaint] if complaint else []
    for what, words in _counts(answers).items():
        console.print(f"{what:<22} {words}", markup=False)
    receivers = [str(receiver["name"]) for receiver in first["alertmanager_receivers"] or []]
    firing, complaint = _alerts(answers)
    complaints += [complaint] if complaint else []
    console.print(f"{'alerts that fire':<22} {firing}", markup=False)
    console.print(f"{'who hears of alerts':<22} {', '.join(receivers) or NOBODY}", markup=False)
    for name, reason in _skipped(first["topology_state_dir"]).items():
        console.print(f"skipped: {name}: {reason}", markup=False)
    complaints += [f"{host}: {answer['problem']}" for host, answer in answers.items() if answer.get("problem")]
    complaints += [
        f"{host}: {unit} is {state}"
        for host, answer in answers.items()
        for unit, state in _units(answer).items()
        if state not in RUNNING
    ]
    for complaint in complaints:
        console.print(f"wrong: {complaint}", markup=False)
    return not complaints


def _read(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("unreachable"):
        return {"problem": "does not answer over SSH"}
    if answer.get("rc", 1):
        return {"problem": str(answer.get("stderr") or answer.get("msg", "")).strip().rpartition("\n")[2]}
    read: dict[str, Any] = json.loads(answer["stdout"])
    return read


def _units(answer: dict[str, Any]) -> dict[str, str]:
    units = answer.get("units", {})
    return units if isinstance(units, dict) else {"units": units}


def _table(hosts: Answers, answers: Answers) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("host", "zone", "address", "state", "groups", "versions"):
        table.add_column(column, overflow="fold")
    for host, variables in hosts.items():
        answer = answers.get(host, {"problem": "was not asked"})
        up = "down" if answer.get("problem") else "up"
        versions = ", ".join(f"{name} {version}" for name, version in sorted(answer.get("versions", {}).items()))
        row = (host, variables["zone"], variables["address"], up, " ".join(variables["group_names"]), versions)
        table.add_row(*(str(cell) for cell in row))
    return table


def _leaders(hosts: Answers, answers: Answers, vip: str) -> dict[str, tuple[str, str]]:
    """Return for each part who leads it, and what is wrong with that."""
    names = {variables["address"]: host for host, variables in hosts.items()}
    found: dict[str, tuple[str, str]] = {}
    holders = [host for host, answer in answers.items() if answer.get("holds_vip")]
    found["virtual address"] = (f"{vip} on {', '.join(holders) or 'no host'}", _unless_one(vip, holders))
    primaries = sorted(
        {
            str(member["name"])
            for cluster in _each(answers, "patroni")
            for member in cluster["members"]
            if member["role"] == "leader"
        }
    )
    found["PostgreSQL primary"] = (", ".join(primaries) or "none", _unless_one("PostgreSQL's primary", primaries))
    leading = sorted(
        host
        for host, answer in answers.items()
        if isinstance(answer.get("etcd"), list)
        for entry in answer["etcd"]
        if entry["Status"]["leader"] == entry["Status"]["header"]["member_id"]
    )
    found["etcd leader"] = (", ".join(leading) or "none", _unless_one("etcd's leader", leading))
    for cluster in ("sessions", "cache"):
        views = [view[cluster] for view in _each(answers, "valkey") if isinstance(view.get(cluster), dict)]
        nodes = views[0]["nodes"] if views else []
        led = sorted(names.get(node["address"], node["address"]) for node in nodes if not node["primary"])
        wrong = sorted({view["state"] for view in views} - {"ok"})
        found[f"Valkey {cluster}"] = (
            ", ".join(led) or "none",
            "" if led and not wrong else f"Valkey {cluster}: {', '.join(wrong) or 'nobody answers'}",
        )
    queues: list[dict[str, Any]] = next(_each(answers, "rabbitmq"), [])
    led = [f"{queue['queue']} {str(queue['leader']).rpartition('@')[2].partition('.')[0]}" for queue in queues]
    found["RabbitMQ queues"] = (", ".join(sorted(led)) or "none", "" if led else "RabbitMQ: no queue is known")
    return found


def _counts(answers: Answers) -> dict[str, str]:
    """Return of each service that follows the load how many replicas are ready, and of each such tier how many hosts answer."""
    figures: dict[tuple[str, str], float] = {}
    for told in _each(answers, "counts"):
        for labels, value in told:
            figures[labels["__name__"], labels.get("service") or labels["tier"]] = value
    found: dict[str, str] = {}
    for what, there, prefix in (
        ("replicas", "freehold_replicas_ready", "freehold_replicas"),
        ("hosts", "freehold:hosts_present", "freehold_hosts"),
    ):
        names = sorted(name for figure, name in figures if figure == f"{prefix}_recorded")
        words = []
        for name in names:
            recorded, least, most = (f"{figures.get((f'{prefix}_{part}', name), 0):.0f}" for part in FIGURES)
            words.append(f"{name} {figures.get((there, name), 0):.0f} of {recorded} ({least} to {most})")
        if words:
            found[f"{what} by load"] = ", ".join(words)
    return found


def _alerts(answers: Answers) -> tuple[str, str]:
    """Return the alerts that fire on any Prometheus, and what is wrong with alerting itself."""
    seen = list(_each(answers, "alerts"))
    mute = [host for host, answer in answers.items() if isinstance(answer.get("alerts"), str)]
    named = {
        f"{labels['alertname']} {labels.get('instance', '')}".strip()
        for found in seen
        for labels in found
        if labels["alertname"] != "DeadMansSwitch"
    }
    if mute or not seen:
        return ", ".join(sorted(named)) or "unknown", f"Prometheus: no answer from {', '.join(mute) or 'any host'}"
    dead = not all(any(labels["alertname"] == "DeadMansSwitch" for labels in found) for found in seen)
    return ", ".join(sorted(named)) or "none", "Prometheus: its rules are not evaluated" if dead else ""


def _each(answers: Answers, part: str) -> Iterator[Any]:
    """Yield what the hosts say of a part; a text is why a host could not say anything."""
    for answer in answers.values():
        if part in answer and not isinstance(answer[part], str):
            yield answer[part]


def _unless_one(what: str, found: list[str]) -> str:
    return "" if len(found) == 1 else f"{what}: {', '.join(found) or 'nobody has it'}"


def _skipped(state: str) -> dict[str, str]:
    """Return what an environment came up without, and why; nothing where its folder or the list is not on this machine."""
    file = Path(state, "artifacts", "skipped.json")
    if not state or not file.exists():
        return {}
    skipped: dict[str, str] = json.loads(file.read_text())
    return skipped
