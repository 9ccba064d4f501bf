"""The preflight of hosts says that the lab's fit, says what does not where a variable is wrong, and leaves no trace."""

from __future__ import annotations

import json
import subprocess

from freehold import playbooks
from tests.support.site import ROOT, Site

# All that a package, a role or apt itself would change.
TRACES = "sudo find /etc /usr /var/lib/apt /var/lib/dpkg /var/cache/apt -xdev -printf '%p %T@ %C@ %s %m\\n' | sort | sha256sum"


def preflight(site: Site, **variables: object) -> dict[str, str]:
    """Return what is told of each host that does not fit; the exit status must agree."""
    env = playbooks.environment(ANSIBLE_STDOUT_CALLBACK="ansible.posix.json", ANSIBLE_LOAD_CALLBACK_PLUGINS="1")
    command = ["ansible-playbook", "-i", f"inventories/{site.inventory}", "-e", json.dumps(variables)]
    printed = subprocess.run(
        [*command, "ansible/preflight.yml"], capture_output=True, text=True, check=False, env=env, cwd=ROOT
    )
    answered = json.loads(printed.stdout)
    assert set(answered["stats"]) == set(site.addresses)
    assert not any(seen["changed"] for seen in answered["stats"].values())
    told = {
        host: " ".join(str(result["msg"]).split())
        for play in answered["plays"]
        for task in play["tasks"]
        for host, result in task["hosts"].items()
        if result.get("failed") or result.get("unreachable")
    }
    assert bool(told) == bool(printed.returncode)
    return told


def test_the_labs_hosts_fit_and_nothing_is_changed(site: Site) -> None:
    """Every check is made on hosts on which the platform runs, with its firewall, and finds nothing."""
    before = site.ask_all(site.addresses, TRACES)
    assert all(isinstance(answer, str) for answer in before.values()), before
    assert preflight(site) == {}
    assert site.ask_all(site.addresses, TRACES) == before


def test_what_does_not_fit_is_told_of_each_host(site: Site) -> None:
    """Whoever runs at a port that nobody of the platform's has, and a disk that is too small."""
    told = preflight(site, disk_mb=10**9, __preflight_own_units="^nobody[.]service$")
    assert set(told) == set(site.addresses)
    for host, text in told.items():
        assert f"{host}: /var/lib has" in text
        assert "9100 has prometheus-node-exporter.service" in text


def test_a_port_that_a_firewall_closes_is_told(site: Site) -> None:
    """By whom it is asked and where: the lab's own firewall lets no edge host ask etcd."""
    row = {"from": ["edge"], "to": "etcd", "ports": ["2379-2380"], "why": "a test"}
    told = preflight(site, topology_access=[row])
    assert set(told) == set(site.groups["edge"])
    for host, text in told.items():
        for peer in site.groups["etcd"]:
            assert f"{host} does not reach {peer} ({site.addresses[peer]}) at 2379: no answer." in text
