"""The lab provider on real hosts: they come up, die, come back, and leave nothing behind."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.lab import HostSpec, Lab, LabError, Volume, hybrid_cgroups, lab_name, run

DATA = "/var/lib/data"
BUSY_SESSIONS = 16 * (os.cpu_count() or 1)
SHARE_OF_A_PROCESSOR = (
    "import time; end = time.monotonic() + 3\nwhile time.monotonic() < end: pass\nprint(time.process_time() / 3)"
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Return a lab of this module's own, with a network and no host."""
    lab = Lab(f"test-{secrets.token_hex(3)}")
    lab.prepare()
    yield lab
    lab.destroy()


@pytest.fixture(scope="module")
def spec(lab: Lab) -> HostSpec:
    """Return a small host with a small volume."""
    volume = Volume("data", 64, (DATA, "/var/lib/misc"))
    return HostSpec("data1", f"{lab.prefix}.49", "data", "a", memory_mb=256, image="base", volumes=(volume,))


@pytest.fixture
def host(lab: Lab, spec: HostSpec) -> HostSpec:
    """Return the host, running."""
    lab.up(spec)
    return spec


def _loop_devices(lab: Lab) -> list[str]:
    return [line for line in run("losetup", "--all").splitlines() if f"{lab.state}/" in line]


def _networks(lab: Lab) -> set[str]:
    return {network["name"] for network in json.loads(lab.podman("network", "ls", "--format", "json"))}


def test_a_host_is_whole_and_a_second_run_leaves_it_alone(lab: Lab, host: HostSpec) -> None:
    """What Ansible needs is there: SSH with the pinned key, sudo, Python, and a system without a failed unit."""
    asked = lab.ssh(
        host.address,
        "hostname; systemctl is-system-running --wait; sudo python3 -c 'import apt, os; print(os.getuid())'",
    )
    assert asked.split() == ["data1", "running", "0"]
    assert lab.up(host) is False


def test_a_host_with_another_key_is_not_talked_to(lab: Lab, host: HostSpec) -> None:
    """Host keys are pinned: who takes a host's address does not get its commands."""
    pinned = lab.known_hosts.read_text()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(lab.state / "other")], check=True)
    other = (lab.state / "other.pub").read_text()
    try:
        lab.known_hosts.write_text(f"{host.address} {other}")
        with pytest.raises(LabError, match="Host key verification failed"):
            lab.ssh(host.address, "true")
    finally:
        lab.known_hosts.write_text(pinned)


def test_memory_and_volumes_are_limited(lab: Lab, host: HostSpec) -> None:
    """A host that wants more memory than it has loses the process, not the machine; a full volume is full."""
    with pytest.raises(LabError):
        lab.ssh(host.address, "python3 -c 'bytearray(400 << 20)'")
    with pytest.raises(LabError, match="No space left on device"):
        lab.ssh(host.address, f"sudo dd if=/dev/zero of={DATA}/big bs=1M count=100 status=none")
    lab.ssh(host.address, f"sudo rm {DATA}/big")


def test_a_host_comes_back_from_a_power_cut_as_it_was(lab: Lab, host: HostSpec) -> None:
    """Its identity, its disk and its volumes are what they were; its link was down before its processes were."""
    keys = lab.known_hosts.read_text()
    lab.ssh(host.address, f"echo disk | sudo tee /etc/kept; echo volume | sudo tee {DATA}/kept; sync")
    lab.power_cut(host.name)
    assert not lab.host(host.name).running
    lab.power_on(host.name)
    assert lab.ssh(host.address, f"cat /etc/kept {DATA}/kept").split() == ["disk", "volume"]
    assert lab.known_hosts.read_text() == keys
    assert lab.up(host) is False


@pytest.mark.skipif(not hybrid_cgroups(), reason="Hosts get weights on machines with hybrid cgroups only.")
def test_hosts_come_before_all_else_that_runs_here(lab: Lab, host: HostSpec) -> None:
    """A playbook's processes are a session each, and the kernel gives each session as much as a process, however nice it is."""
    others = [
        subprocess.Popen(["sh", "-c", "while :; do :; done"], start_new_session=True) for _ in range(BUSY_SESSIONS)
    ]
    try:
        taken = lab.ssh(host.address, f"python3 -c '{SHARE_OF_A_PROCESSOR}'")
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert float(taken) > 0.7


@pytest.mark.skipif(not hybrid_cgroups(), reason="Hosts get weights on machines with hybrid cgroups only.")
def test_a_host_that_starts_gives_way_to_those_that_run(lab: Lab, host: HostSpec) -> None:
    """Its start takes from processors that are others' too; it counts as much as they do some time after."""
    lab.power_cut(host.name)
    lab.power_on(host.name)
    container = lab.podman("container", "inspect", "--format", "{{.Id}}", lab.host(host.name).container).strip()
    shares = Path(f"/sys/fs/cgroup/cpu/freehold-{lab.name}-hosts/libpod-{container}/cpu.shares")
    assert shares.read_text(encoding="ascii").strip() == "128"
    end = time.monotonic() + 60
    while shares.read_text(encoding="ascii").strip() != "1024":
        assert time.monotonic() < end
        time.sleep(1)


def test_a_host_that_podman_believes_alive_is_brought_back(lab: Lab, host: HostSpec) -> None:
    """Killed from outside with the process that watches it, so that podman never hears of it."""
    lab.ssh(host.address, f"echo volume | sudo tee {DATA}/outside; sync")
    found = lab.host(host.name)
    monitor = int(lab.podman("container", "inspect", "--format", "{{.State.ConmonPid}}", found.container))
    run("kill", "-KILL", str(monitor))
    run("kill", "-KILL", str(found.pid))
    end = time.monotonic() + 10
    while lab.host(host.name).running:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert lab.up(host) is True
    assert lab.ssh(host.address, f"cat {DATA}/outside").strip() == "volume"


def test_a_host_that_is_gone_is_made_anew_on_its_volume(lab: Lab, host: HostSpec) -> None:
    """The new host has a key of its own, which replaces the old one's pin."""
    keys = lab.known_hosts.read_text()
    lab.ssh(host.address, f"echo volume | sudo tee {DATA}/anew; sync")
    lab.podman("rm", "--force", "--time", "0", lab.host(host.name).container)
    assert lab.up(host) is True
    assert lab.ssh(host.address, f"cat {DATA}/anew").strip() == "volume"
    assert lab.known_hosts.read_text() != keys


def test_a_host_that_was_interrupted_before_its_start_comes_up(lab: Lab, host: HostSpec) -> None:
    """As after an interrupted run: a container that was made and never started."""
    lab.podman("stop", lab.host(host.name).container)
    assert lab.up(host) is True
    assert lab.ssh(host.address, "hostname").strip() == host.name


def test_a_running_host_is_not_changed_behind_its_back(lab: Lab, host: HostSpec) -> None:
    """Other limits need another host, and the message says how."""
    with pytest.raises(LabError, match=r"memory_mb 256 instead of 300.*fleet_keep_volumes"):
        lab.up(replace(host, memory_mb=300))


def test_stopping_frees_loop_devices_and_keeps_data(lab: Lab, host: HostSpec) -> None:
    """A lab at rest takes nothing but disk."""
    lab.ssh(host.address, f"echo volume | sudo tee {DATA}/stopped; sync")
    assert _loop_devices(lab)
    lab.stop()
    assert _loop_devices(lab) == []
    assert lab.up(host) is True
    assert lab.ssh(host.address, f"cat {DATA}/stopped").strip() == "volume"


def test_a_lab_goes_without_a_trace_and_without_touching_another(lab: Lab, host: HostSpec) -> None:
    """Two labs live side by side in networks of their own; one goes, and only one."""
    second = Lab(f"{lab.name}-b")
    try:
        second.prepare()
        ours, theirs = (ipaddress.ip_network(f"{each.prefix}.0/24") for each in (lab, second))
        assert not ours.overlaps(theirs)
        second.up(replace(host, address=f"{second.prefix}.49"))
        assert second.network in _networks(second)
    finally:
        second.destroy()
    assert not second.state.exists()
    assert second.hosts() == []
    assert _loop_devices(second) == []
    assert second.network not in _networks(lab)
    assert str(theirs) not in run("iptables-save")
    assert str(theirs) not in run("ip", "-4", "route", "show", "table", "all")
    second.destroy()
    assert lab.ssh(host.address, "hostname").strip() == host.name
    assert _loop_devices(lab)


def test_a_host_is_removed_with_or_without_its_volumes(lab: Lab, host: HostSpec) -> None:
    """Volumes go with their host unless they are to be kept; what is gone is gone the second time too."""
    lab.ssh(host.address, f"echo volume | sudo tee {DATA}/removed; sync")
    assert lab.down(host.name, keep_volumes=True) is True
    lab.up(host)
    assert lab.ssh(host.address, f"cat {DATA}/removed").strip() == "volume"
    assert lab.down(host.name) is True
    assert lab.down(host.name) is False
    assert host.address not in lab.known_hosts.read_text()
    lab.up(host)
    with pytest.raises(LabError, match="No such file"):
        lab.ssh(host.address, f"cat {DATA}/removed")


def test_volumes_begin_with_what_the_image_has(lab: Lab, host: HostSpec) -> None:
    """Owners and modes of the image's folders are those of the volume's."""
    on_volume = lab.ssh(
        host.address, "stat --format '%U:%G %a' /var/lib/misc; findmnt --noheadings --output FSTYPE /var/lib/misc"
    )
    assert on_volume.split() == ["root:root", "755", "ext4"]


@pytest.mark.parametrize("name", ["UPPER", "-dash", "a" * 32, "with space", "../up"])
def test_a_name_that_is_none_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab's name becomes part of paths and of podman's names."""
    monkeypatch.setenv("FREEHOLD_LAB", name)
    with pytest.raises(LabError, match="FREEHOLD_LAB"):
        lab_name()
