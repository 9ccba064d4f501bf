"""Each inventory of the project is accepted, and what no role could live with is refused before a host is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from freehold import specs
from tests.inventory.conftest import ROOT, Inventory, run_playbook, variables

INVENTORIES = sorted(path.name for path in (ROOT / "inventories").iterdir())


@pytest.mark.parametrize("name", INVENTORIES)
def test_inventories_are_accepted(name: str, tmp_path: Path) -> None:
    """`make validate` has nothing to say once the secrets are there."""
    generated = tmp_path / "generated.json"
    generated.write_text(json.dumps(variables(tmp_path)))
    status, failures = run_playbook("ansible/validate.yml", ROOT / "inventories" / name, "-e", f"@{generated}")
    assert failures == {}
    assert status == 0


def test_secrets_for_a_vault_are_all_there_and_no_two_alike() -> None:
    """What `make secrets` prints can be encrypted as it is, and nobody else has it."""
    command = [sys.executable, "-m", "freehold", "secrets", "--inventory", "example"]
    printed = [subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout for _ in range(2)]
    first, second = (yaml.safe_load(text) for text in printed)
    assert set(first) == set(specs.secrets())
    assert len({*first.values(), *second.values()}) == 2 * len(first)
    # One that begins with a hyphen is an option where a program takes it as a word.
    assert all(len(value) == 32 and value.isalnum() for value in first.values())


def test_an_even_number_of_etcd_hosts_is_refused(inventory: Inventory) -> None:
    """Two members survive no more than one."""
    inventory.hosts["etcd"] = {"hosts": {"data1": {}, "data2": {}}}
    status, said = inventory.judge("--limit", "data1")
    assert status
    assert "groups['etcd'] has 2 hosts (data1, data2)" in said


@pytest.mark.parametrize("group", ["etcd", "postgres", "valkey", "rabbitmq", "registry"])
def test_a_missing_group_is_refused(inventory: Inventory, group: str) -> None:
    """Its play would do nothing, in silence."""
    del inventory.hosts[group]
    status, said = inventory.judge("--limit", "edge1")
    assert status
    assert f"groups: {group} empty or missing" in said


@pytest.mark.parametrize("tier", ["edge", "app"])
def test_an_empty_tier_is_refused(inventory: Inventory, tier: str) -> None:
    """A group without a host is as good as none."""
    inventory.hosts[tier] = {"hosts": {}}
    status, said = inventory.judge("--limit", "ops1")
    assert status
    assert f"groups: {tier} empty or missing" in said


def test_a_host_that_waits_to_become_an_app_host_is_accepted(inventory: Inventory) -> None:
    """It is of no tier."""
    inventory.hosts["standby"] = {
        "hosts": {"app9": {"zone": "c", "address": "192.0.2.73", "memory_mb": 1024, "cpus": 1}}
    }
    assert inventory.judge("--limit", "app9,edge1") == (0, "")


def test_an_edge_host_with_a_host_proxy_is_refused(inventory: Inventory) -> None:
    """Each of both would take the other's configuration away."""
    inventory.hosts["registry"] = {"hosts": {"edge1": {}, "ops1": {}}}
    status, said = inventory.judge("--limit", "edge1")
    assert status
    assert "groups: edge1 is in edge and in registry" in said


def test_two_hosts_with_one_address_are_refused(inventory: Inventory) -> None:
    """The message names the address and both hosts."""
    inventory.hosts["app"]["hosts"]["app2"]["address"] = inventory.hosts["app"]["hosts"]["app1"]["address"]
    status, said = inventory.judge("--limit", "ops1")
    assert status
    assert "address: 192.0.2.65 belongs to more than one host" in said
    assert "app1, app2" in said


def test_data_hosts_in_one_zone_are_refused(inventory: Inventory) -> None:
    """By each of the data tier's roles, since groups can be split."""
    for host in inventory.hosts["data"]["hosts"].values():
        host["zone"] = "a"
    status, said = inventory.judge("--limit", "data1")
    assert status
    assert "zone: all etcd hosts (data1, data2, data3) are in zone a" in said


REPLICA = {"hosts": {"replica1": {"zone": "a", "address": "192.0.2.129", "memory_mb": 1024, "cpus": 1}}}


def test_a_read_replica_that_is_no_postgres_host_is_refused(inventory: Inventory) -> None:
    """Nobody would run a database there, in silence."""
    inventory.hosts["replica"] = REPLICA
    inventory.hosts["postgres"] = {"children": {"data": {}}}
    status, said = inventory.judge("--limit", "edge1")
    assert status
    assert "groups: replica1 in replica and not in postgres" in said


def test_a_read_replica_without_a_network_of_its_tier_is_refused(inventory: Inventory) -> None:
    """No firewall would let it in."""
    inventory.hosts["replica"] = REPLICA
    inventory.hosts["postgres"] = {"children": {"data": {}, "replica": {}}}
    networks = {
        "edge": ["192.0.2.16/28"],
        "ops": ["192.0.2.32/28"],
        "data": ["192.0.2.48/28"],
        "app": ["192.0.2.64/26"],
    }
    inventory.everywhere["topology_tier_networks"] = networks
    status, said = inventory.judge("--limit", "edge1")
    assert status
    assert "topology_tier_networks: no network for replica" in said
    inventory.everywhere["topology_tier_networks"] = networks | {"replica": ["192.0.2.128/28"]}
    assert inventory.judge("--limit", "edge1,data1,replica1") == (0, "")


def test_a_virtual_address_outside_the_edge_network_is_refused(inventory: Inventory) -> None:
    """The address would be nobody's."""
    inventory.everywhere["topology_vip"] = "198.51.100.30"
    status, said = inventory.judge("--limit", "edge1")
    assert status
    assert "topology_vip 198.51.100.30 lies outside the edge network" in said


def test_a_wrong_type_is_refused(inventory: Inventory) -> None:
    """Types come from the roles' argument specs."""
    inventory.everywhere["keepalived_router_id"] = "fifty"
    status, said = inventory.judge("--limit", "edge1")
    assert status
    assert "keepalived_router_id" in said
