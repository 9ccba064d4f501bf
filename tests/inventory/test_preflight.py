"""The preflight of hosts tells all that is wrong, of all hosts. The controller stands for the hosts; the lab's are asked in tests/system."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from tests.inventory.conftest import Inventory, run_playbook

HOSTS = ("app1", "edge1")
PLAYBOOK = "ansible/preflight.yml"


def preflight(inventory: Inventory, **variables: object) -> tuple[int, dict[str, str]]:
    """Return the exit status and what is told of each host."""
    given = json.dumps(variables)
    status, failures = run_playbook(PLAYBOOK, inventory.write(), "--limit", ",".join(HOSTS), "-e", given)
    assert all(len(texts) == 1 for texts in failures.values()), failures
    return status, {host: " ".join(texts[0].split()) for host, texts in failures.items()}


def free_port(*ports: int) -> socket.socket:
    """Return a socket that listens at the first of some ports that nobody has."""
    for port in ports:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
    raise AssertionError(f"all of {ports} are taken")


def test_all_misfits_of_all_hosts_are_told_at_once(inventory: Inventory) -> None:
    """Not the first only, and each with its value; also who has a port that the platform takes."""
    with free_port(8405, 9100) as listener:
        port = listener.getsockname()[1]
        status, told = preflight(
            inventory,
            ansible_connection="local",
            memory_mb=10**9,
            cpus=1000,
            disk_mb=10**9,
            topology_resolvers=["127.0.0.53"],
        )
    assert status
    assert set(told) == set(HOSTS)
    for host in HOSTS:
        assert f"memory_mb of {host} is 1000000000, but" in told[host]
        assert f"cpus of {host} is 1000, but the host has" in told[host]
        assert f"{host}: /var/lib has" in told[host]
        assert f"address of {host} is 192.0.2." in told[host]
        assert f"{port} has " in told[host]
    assert "containers reach none of its name servers (127.0.0.53)" in told["app1"]
    assert "name servers" not in told["edge1"]


def test_hosts_that_are_not_reached_are_told_with_the_way_out(inventory: Inventory, tmp_path: Path) -> None:
    """Each of them, by what Ansible went to and what SSH said."""
    nowhere = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "nobody", "ansible_ssh_retries": 0}
    status, told = preflight(
        inventory, **nowhere, ansible_ssh_common_args=f"-F none -o UserKnownHostsFile={tmp_path}/none"
    )
    assert status
    assert set(told) == set(HOSTS)
    for host in HOSTS:
        assert f"{host} was not asked" in told[host]
        assert "127.0.0.1 as nobody" in told[host]
        assert "Connection refused" in told[host]
        assert "mend ansible_host" in told[host]
