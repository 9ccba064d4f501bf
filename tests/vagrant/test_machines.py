"""The machines that Vagrant would make are the hosts of its inventory, which is the lab's in other sizes. None is made here."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from freehold import playbooks

ROOT = Path(__file__).resolve().parent.parent.parent
VAGRANT = ROOT / "vagrant"
PROVIDERS = ("libvirt", "virtualbox")
TIERS = ("edge", "app", "data", "ops")
# What comes from the provider of one of both: how its hosts are made, reached and connected.
LAB_ONLY = {"fleet_builders", "fleet_provider", "fleet_volumes", "topology_host_scaling"}
VAGRANT_ONLY = {"disk_mb", "topology_resolvers", "vagrant_machine", "vagrant_machines"}


def run(folder: Path, *command: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Return how a command of Vagrant's ended that keeps what it writes below a folder."""
    env = {**os.environ, "VAGRANT_HOME": str(folder / "home"), "VAGRANT_DOTFILE_PATH": str(folder / "dot"), **changes}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=VAGRANT)


def describe(folder: Path, provider: str, vagrantfile: Path = VAGRANT) -> dict[str, Any]:
    """Return what Vagrant makes of a Vagrantfile for a provider."""
    done = run(folder, "ruby", str(Path(__file__).with_name("describe.rb")), provider, str(vagrantfile))
    assert done.returncode == 0, done.stdout + done.stderr
    described: dict[str, Any] = json.loads(done.stdout)
    return described


def inventory(name: str) -> dict[str, Any]:
    """Return an inventory as Ansible reads it: its groups, and the variables of each host."""
    env = playbooks.environment(FREEHOLD_LAB="vagrant-test")
    command = ["ansible-inventory", "-i", f"inventories/{name}", "--list"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=ROOT)
    listed: dict[str, Any] = json.loads(printed.stdout)
    return listed


@pytest.fixture(scope="module")
def inventories() -> dict[str, dict[str, Any]]:
    """Return the lab's inventory and Vagrant's."""
    return {name: inventory(name) for name in ("lab", "vagrant")}


@pytest.fixture(scope="module", params=PROVIDERS)
def described(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what Vagrant makes of the Vagrantfile for each provider."""
    return describe(tmp_path_factory.mktemp("vagrant"), request.param)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_vagrant_accepts_the_vagrantfile(tmp_path: Path, provider: str) -> None:
    """By its own command, where neither provider has to be there."""
    done = run(tmp_path, "vagrant", "validate", "-p", VAGRANT_DEFAULT_PROVIDER=provider)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_provider_accepts_each_machine(described: dict[str, Any]) -> None:
    """By its own configuration, which `vagrant validate -p` leaves out."""
    assert {name: machine["errors"] for name, machine in described["machines"].items() if machine["errors"]} == {}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_setting_that_the_provider_does_not_know_is_found(tmp_path: Path, provider: str) -> None:
    """Each provider's own code reads the Vagrantfile here."""
    spoilt = tmp_path / "vagrant"
    spoilt.mkdir()
    (tmp_path / "inventories").symlink_to(ROOT / "inventories")
    text = (VAGRANT / "Vagrantfile").read_text()
    assert f"{provider}.cpus =" in text
    (spoilt / "Vagrantfile").write_text(text.replace(f"{provider}.cpus =", f"{provider}.heads = 2\n{provider}.cpus ="))
    errors = [machine["errors"] for machine in describe(tmp_path, provider, spoilt)["machines"].values()]
    assert errors
    assert all(any("heads" in error for error in of_one) for of_one in errors)


def test_the_machines_are_the_inventorys_hosts(
    described: dict[str, Any], inventories: dict[str, dict[str, Any]]
) -> None:
    """One a host and no other, with its name, address, memory and cores."""
    keys = ("memory_mb", "cpus")
    hosts = inventories["vagrant"]["_meta"]["hostvars"]
    wanted = {name: (name, [host["address"]], *(host[key] for key in keys)) for name, host in hosts.items()}
    made = described["machines"].items()
    assert {
        name: (machine["hostname"], machine["addresses"], *(machine[key] for key in keys)) for name, machine in made
    } == wanted


def test_no_key_that_everybody_has_is_left(described: dict[str, Any]) -> None:
    """Vagrant gives its own user a key of its own for each machine; the box lets the public one in elsewhere, too."""
    assert all(machine["insert_key"] for machine in described["machines"].values())
    (pattern,) = re.findall(r"sed -i '/(.*)/d' \{\} \+", next(iter(described["machines"].values()))["provision"])
    assert re.search(pattern, described["public_key"])


@pytest.mark.parametrize(("setting", "kind"), [("KexAlgorithms", "kex"), ("Ciphers", "encryption"), ("MACs", "hmac")])
def test_vagrant_still_gets_in_when_the_role_base_has_been_there(
    described: dict[str, Any], setting: str, kind: str
) -> None:
    """Of each kind of algorithm sshd is left one that Vagrant's own SSH library speaks. The first of its files counts."""
    provision = next(iter(described["machines"].values()))["provision"]
    hardened = (ROOT / "roles/base/templates/sshd.conf.j2").read_text()
    left = re.findall(rf"^{setting} (\S+)$", provision + hardened, re.MULTILINE)[0].split(",")
    assert set(left) & set(described["algorithms"][kind])


def test_groups_and_tiers_are_the_labs(inventories: dict[str, dict[str, Any]]) -> None:
    """The same groups with the same hosts, so that what is proved of the lab holds here."""

    def members(listed: dict[str, Any], group: str) -> set[str]:
        own = listed.get(group, {})
        return set(own.get("hosts", [])).union(*(members(listed, child) for child in own.get("children", [])))

    groups = {name: set(listed) - {"_meta", "all"} for name, listed in inventories.items()}
    assert groups["vagrant"] == groups["lab"]
    assert set(TIERS) <= groups["lab"]
    for group in groups["lab"]:
        assert members(inventories["vagrant"], group) == members(inventories["lab"], group), group


def test_variables_are_the_labs(inventories: dict[str, dict[str, Any]]) -> None:
    """Each host has the variables that it has in the lab, but for those that its provider brings or needs."""
    lab, vagrant = (inventories[name]["_meta"]["hostvars"] for name in ("lab", "vagrant"))
    for host, variables in lab.items():
        assert set(vagrant[host]) - VAGRANT_ONLY == set(variables) - LAB_ONLY, host
        assert vagrant[host]["zone"] == variables["zone"]
    everything = set().union(*lab.values(), *vagrant.values())
    assert everything >= LAB_ONLY | VAGRANT_ONLY, "a name that no inventory has"
