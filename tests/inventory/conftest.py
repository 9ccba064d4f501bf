"""A copy of the lab's inventory to spoil, and the playbooks that judge it. No host is touched."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from freehold import playbooks, specs

ROOT = Path(__file__).resolve().parent.parent.parent
LAB = ROOT / "inventories/lab"
# RFC 5737: addresses that nobody has.
PREFIX = "192.0.2"


def variables(state: Path) -> dict[str, Any]:
    """Return what `make up` would have generated: secrets, a state folder, the service's image and its archive there."""
    archive = state / "artifacts/orders.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.touch()
    return {
        **dict.fromkeys(specs.secrets(), "made-up-for-a-test"),
        "topology_state_dir": str(state),
        "topology_service_images": {"orders": f"orders@sha256:{'0' * 64}"},
    }


def run_playbook(playbook: str, inventory: Path, *arguments: str) -> tuple[int, dict[str, list[str]]]:
    """Return the exit status and the messages of all failed tasks by host."""
    env = playbooks.environment(
        ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
        ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
        ANSIBLE_STRATEGY="linear",  # hosts are not reached, or are this machine, which may have no sudo
        FREEHOLD_LAB="inventory-test",
    )
    command = ["ansible-playbook", "-i", str(inventory), *arguments, playbook]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=ROOT)
    try:
        plays = json.loads(printed.stdout)["plays"]
    except json.JSONDecodeError:
        pytest.fail(f"{' '.join(command)}: {printed.stdout}{printed.stderr}")
    failures: dict[str, list[str]] = {}
    for play in plays:
        for task in play["tasks"]:
            for host, result in task["hosts"].items():
                if result.get("failed"):
                    failures.setdefault(host, []).append(str(result["msg"]))
    return printed.returncode, failures


class Inventory:
    """The lab's inventory as data, to be changed and judged."""

    def __init__(self, folder: Path) -> None:
        """Read it."""
        self.folder = folder
        self.hosts: dict[str, Any] = yaml.safe_load((LAB / "hosts.yml").read_text())["all"]["children"]
        self.everywhere: dict[str, Any] = yaml.safe_load((LAB / "group_vars/all/main.yml").read_text())
        self.everywhere |= {"lab_prefix": PREFIX, **variables(folder / "state")}
        # It is a file of its own, beside which nothing says which hosts were added.
        del self.everywhere["topology_host_scaling"]
        self.group_variables = {
            path.stem: yaml.safe_load(path.read_text()) for path in sorted((LAB / "group_vars").glob("*.yml"))
        }

    def write(self) -> Path:
        """Write it as a file and return the file."""
        hosts = {"all": {"vars": self.everywhere, "children": copy.deepcopy(self.hosts)}}
        for group, values in self.group_variables.items():
            hosts["all"]["children"].setdefault(group, {})["vars"] = values
        file = self.folder / "hosts.yml"
        file.write_text(yaml.safe_dump(hosts))
        return file

    def judge(self, *arguments: str) -> tuple[int, str]:
        """Return what `make validate` says: its status and the failures of all hosts."""
        status, failures = run_playbook("ansible/validate.yml", self.write(), *arguments)
        return status, "\n".join(f"{host}: {text}" for host, texts in failures.items() for text in texts)


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    """Return a copy of the lab's inventory, complete and right."""
    return Inventory(tmp_path)
