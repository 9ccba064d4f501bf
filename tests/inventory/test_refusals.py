"""Every role refuses what it cannot live with, before any change, in words that name the variable. One run, no host."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from freehold import playbooks, specs
from tests.inventory.conftest import ROOT, Inventory

CASES: dict[str, list[dict[str, Any]]] = yaml.safe_load(Path(__file__).with_name("refusals.yml").read_text())
NAMES = [f"{role} {number}" for role, cases in CASES.items() for number in range(len(cases))]
# Where a role's rules look at their own host, it is one that has the role.
HOSTS = {
    "app1": ["host_proxy", "podman", "service"],
    "edge1": ["haproxy", "keepalived"],
    "ops1": ["registry", "prometheus", "alertmanager", "jaeger", "loki", "grafana", "autoscaler"],
}
FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "13",
    "distribution_version": "13.1",
    "memtotal_mb": 100000,
    "mounts": [],
    "virtualization_type": "container",
    "virtualization_role": "guest",
}


def _tasks(name: str, role: str, case: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tasks of one case: what the host says, the role's preflight, what it answered."""
    variables = dict(case.get("vars", {}))
    if change := case.get("change"):
        services = specs.read(ROOT / "roles/topology").defaults["topology_order_services"]
        variables["services"] = [{**services[0], **change}, *services[1:]]
    answer = {"name": name, "ansible.builtin.debug": {"msg": "{{ ansible_failed_result.msg }}"}}
    return [
        {"ansible.builtin.set_fact": {**FACTS, **case.get("facts", {}), "cacheable": True}},
        {
            "block": [{"ansible.builtin.include_role": {"name": role, "tasks_from": "preflight"}, "vars": variables}],
            "rescue": [answer],
        },
    ]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what was answered in each case that was refused."""
    folder = tmp_path_factory.mktemp("refusals")
    plays: dict[str, list[dict[str, Any]]] = {}
    for role, cases in CASES.items():
        host = next((host for host, roles in HOSTS.items() if role in roles), "data1")
        tasks = [task for number, case in enumerate(cases) for task in _tasks(f"{role} {number}", role, case)]
        plays.setdefault(host, []).extend(tasks)
    written = [
        {"hosts": host, "connection": "local", "gather_facts": False, "tasks": tasks} for host, tasks in plays.items()
    ]
    (folder / "play.yml").write_text(yaml.safe_dump(written))
    env = playbooks.environment(ANSIBLE_STDOUT_CALLBACK="ansible.posix.json", ANSIBLE_LOAD_CALLBACK_PLUGINS="1")
    printed = subprocess.run(
        ["ansible-playbook", "-i", str(Inventory(folder).write()), str(folder / "play.yml")],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        cwd=ROOT,
    )
    try:
        seen = [task for play in json.loads(printed.stdout)["plays"] for task in play["tasks"]]
    except json.JSONDecodeError:
        pytest.fail(printed.stdout + printed.stderr)
    return {
        task["task"]["name"]: str(result["msg"])
        for task in seen
        for result in task["hosts"].values()
        if task["task"]["name"] in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_it_is_refused(answers: dict[str, str], name: str) -> None:
    """It is, and the message has the variable, its value and what would be right."""
    role, number = name.split()
    assert name in answers, "was accepted"
    for words in CASES[role][int(number)]["says"]:
        assert words in " ".join(answers[name].split())


def test_every_role_with_rules_has_a_case() -> None:
    """A role without a case would be left out of this test."""
    roles = {path.parts[-3] for path in ROOT.glob("roles/*/tasks/preflight.yml")}
    assert roles - set(CASES) == set()
