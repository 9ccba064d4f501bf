"""The edge's roles on a machine with a kernel, a systemd and a packet filter of its own, which QEMU boots from a disk that is made here.

What hosts of the lab share with the machine that runs them, they have here by themselves. Processors are emulated, as not every machine
that says so has a KVM that works.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

import pytest
import yaml

from freehold import playbooks, secrets
from freehold.lab import APT_OPTIONS, CUSTOMIZE, DPKG_OPTIONS, PACKAGES, SUITE, USER, Lab, apt_sources, lab_name, run

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "build" / "log"
HOST = "edge1"
KERNEL = ("initramfs-tools", "linux-image-cloud-amd64", "udev")
DISK = "4G"
MEMORY_MB = 1024
BOOT_SECONDS = 600
PLAYBOOK_SECONDS = 3600
SILENT_SECONDS = 10
# Of QEMU's own network, which is Vagrant's by VirtualBox too: the way to the Internet, and the controller's.
NAT, NAT_GATEWAY, NAT_RESOLVER = "10.0.2.15", "10.0.2.2", "10.0.2.3"
MACS = {"nat": "52:54:00:00:00:01", "own": "52:54:00:00:00:02"}
NETWORK = """
[Match]
MACAddress={mac}
[Network]
Address={address}/24
"""


@dataclass
class Machine:
    """A machine that runs: where the controller reaches its SSH, the virtual address, and a port for Prometheus alone."""

    folder: Path
    inventory: Path
    ssh: int
    https: int
    metrics: int

    def ask(self, command: str) -> str:
        """Return what a command prints on it, as root."""
        line = [
            *("ssh", "-F", "none", "-i", str(self.folder / "key"), "-p", str(self.ssh), "-o", "ConnectTimeout=10"),
            *("-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes"),
            *(f"{USER}@127.0.0.1", f"sudo sh -c {shlex.quote(command)}"),
        ]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=120).stdout

    def answers(self) -> bool:
        """Whether it lets the controller in."""
        try:
            self.ask("true")
        except subprocess.SubprocessError:
            return False
        return True

    def converge(self, name: str) -> playbooks.HostRecap:
        """Return the machine's recap of site.yml; raises AssertionError with its last words."""
        command = ["ansible-playbook", "-i", str(self.inventory), "--limit", HOST, "ansible/site.yml"]
        env = playbooks.environment()
        log = LOGS / f"vm-{name}.log"
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, check=False, env=env, cwd=ROOT, timeout=PLAYBOOK_SECONDS
            )
        text = log.read_text(encoding="utf-8")
        assert done.returncode == 0, text[text.find("\nfatal:") :][:4000]
        found = (playbooks.RECAP.match(line) for line in text.splitlines())
        (recap,) = (match for match in found if match)
        return playbooks.HostRecap(*(int(number) for number in recap.groups()[1:]))


def make_disk(folder: Path, address: str) -> None:
    """Make the root file system of a machine: Debian's packages with its kernel for clouds, who may log in, and its network."""
    root = folder / "root"
    run(
        *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join((*PACKAGES, *KERNEL))}"),
        *(f"--aptopt={option}" for option in APT_OPTIONS),
        *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
        "--skip=cleanup/apt/lists",
        f'--customize-hook=chroot "$1" sh -e -c {shlex.quote(CUSTOMIZE)}',
        *(SUITE, str(root), *apt_sources()),
    )
    for name in ("key", "host"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name), root=False)
    home = root / "home" / USER / ".ssh"
    files = {
        home / "authorized_keys": (folder / "key.pub").read_text(),
        root / "etc/ssh/ssh_host_ed25519_key.pub": (folder / "host.pub").read_text(),
        root / "etc/ssh/ssh_host_ed25519_key": (folder / "host").read_text(),
        root / "etc/hostname": f"{HOST}\n",
        root / "etc/hosts": f"127.0.0.1 localhost\n{address} {HOST}\n",
        root / "etc/resolv.conf": f"nameserver {NAT_RESOLVER}\n",
        root / "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
        root / "etc/systemd/network/10-nat.network": NETWORK.format(mac=MACS["nat"], address=NAT)
        + f"Gateway={NAT_GATEWAY}\n",
        root / "etc/systemd/network/20-own.network": NETWORK.format(mac=MACS["own"], address=address),
    }
    for path, text in files.items():
        run("rm", "-f", str(path))
        run("tee", str(path), data=text)
    run("chown", "--reference", str(home), str(home / "authorized_keys"))
    run("chmod", "0600", str(home / "authorized_keys"), str(root / "etc/ssh/ssh_host_ed25519_key"))
    # What a host of the lab leaves to the machine that runs it: modules, devices.
    run("find", str(root / "etc/systemd/system"), "-lname", "/dev/null", "-delete")
    run("chroot", str(root), "systemctl", "enable", "--quiet", "systemd-networkd")
    for name in ("vmlinuz", "initrd.img"):
        (found,) = (root / "boot").glob(f"{name}-*")
        run("cp", str(found), str(folder / name))
    run("mkfs.ext4", "-q", "-d", str(root), str(folder / "disk"), DISK)
    run("chown", str(os.getuid()), *(str(folder / name) for name in ("vmlinuz", "initrd.img", "disk")))
    run("rm", "-rf", str(root))


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def write_inventory(folder: Path, lab: Lab, port: int) -> Path:
    """Return Vagrant's inventory with another way to the one machine that there is, and a state folder of its own."""
    inventory = folder / "inventory"
    shutil.copytree(ROOT / "inventories/vagrant", inventory)
    (inventory / "state.yml").write_text(yaml.safe_dump({"plugin": "lab_state", "lab": lab.name}))
    own = {
        "ansible_host": "127.0.0.1",
        "ansible_port": port,
        "ansible_user": USER,
        "ansible_ssh_private_key_file": str(folder / "key"),
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile='{folder / 'known_hosts'}' -o StrictHostKeyChecking=yes",
    }
    (inventory / "host_vars").mkdir()
    (inventory / "host_vars" / f"{HOST}.yml").write_text(yaml.safe_dump(own))
    return inventory


def wait_until_up(machine: Machine, qemu: subprocess.Popen[bytes]) -> None:
    """Return when it lets the controller in; raises AssertionError with its console's last words."""
    give_up = time.monotonic() + BOOT_SECONDS
    while not machine.answers():
        console = (machine.folder / "console").read_text(errors="replace")
        assert qemu.poll() is None, f"QEMU ended\n{console[-2000:]}"
        assert time.monotonic() < give_up, console[-2000:]
        time.sleep(3)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Return a machine that has booted, and make an end of it afterwards."""
    folder = tmp_path_factory.mktemp("vm")
    lab = Lab(f"{lab_name()[:24]}-vm")
    LOGS.mkdir(parents=True, exist_ok=True)
    variables = playbooks.variables("vagrant", HOST, "address", "topology_vip")[HOST]
    address, vip = str(variables["address"]), str(variables["topology_vip"])
    lab.state.mkdir(parents=True, exist_ok=True)
    secrets.generate(lab.state / "secrets.yml")
    make_disk(folder, address)
    ports = free_ports(3)
    key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{ports[0]} {key}\n")
    machine = Machine(folder, write_inventory(folder, lab, ports[0]), *ports)
    forwards = f"hostfwd=tcp:127.0.0.1:{machine.https}-{vip}:443,hostfwd=tcp:127.0.0.1:{machine.metrics}-{address}:8405"
    command = [
        # It ends with the tests, also where these are killed.
        *("setpriv", "--pdeathsig", "TERM"),
        *(
            "qemu-system-x86_64",
            "-machine",
            "q35,accel=tcg",
            "-cpu",
            "max",
            "-smp",
            str(min(2, os.cpu_count() or 1)),
        ),
        *("-m", str(MEMORY_MB), "-display", "none", "-nodefaults", "-serial", f"file:{folder / 'console'}"),
        *("-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd.img")),
        *("-append", "root=/dev/vda rw console=ttyS0"),
        *("-drive", f"file={folder / 'disk'},format=raw,if=virtio,cache=unsafe"),
        *("-netdev", f"user,id=nat,hostfwd=tcp:127.0.0.1:{machine.ssh}-{NAT}:22"),
        *("-device", f"virtio-net-pci,netdev=nat,mac={MACS['nat']}", "-device", "virtio-rng-pci"),
        *("-netdev", f"user,id=own,net={address.rpartition('.')[0]}.0/24,restrict=on,{forwards}"),
        *("-device", f"virtio-net-pci,netdev=own,mac={MACS['own']}"),
    ]
    (folder / "console").touch()
    qemu = subprocess.Popen(command)
    try:
        wait_until_up(machine, qemu)
        yield machine
    finally:
        qemu.terminate()
        qemu.wait(timeout=30)
        shutil.copy(folder / "console", LOGS / "vm-console.log")
        shutil.rmtree(lab.state)
        (folder / "disk").unlink()


def test_its_second_run_changes_nothing(machine: Machine) -> None:
    """The first installs and configures all that an edge host has."""
    first = machine.converge("first")
    assert first.changed > 0
    second = machine.converge("second")
    assert (second.changed, second.failed, second.unreachable) == (0, 0, 0)


def test_it_takes_the_virtual_address_and_answers_users_there(machine: Machine) -> None:
    """By TLS, with what the edge says of a path that it does not know."""
    assert asked(machine) == (404, "application/problem+json")


def test_its_own_kernel_keeps_everybody_else_out(machine: Machine) -> None:
    """Figures are for Prometheus's hosts: the port is open there, and no other host on the same network gets as far as TLS.

    At the users' port the same attempt does.
    """
    assert machine.ask("ss --no-header --listening --numeric --tcp 'sport = :8405'").strip()
    assert "policy drop" in machine.ask("nft list ruleset")
    assert speaks_tls(machine.https)
    assert not speaks_tls(machine.metrics)


def test_its_chrony_runs(machine: Machine) -> None:
    """It tells how the clock is; whether it has reached a server is not asked, as not every machine reaches one."""
    assert "Leap status" in machine.ask("chronyc tracking")


def speaks_tls(port: int) -> bool:
    """Whether somebody answers on a forwarded port; QEMU takes each connection, and ends it where the machine does not."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=SILENT_SECONDS) as line,
            trusting().wrap_socket(line),
        ):
            return True
    except OSError:
        return False


def trusting() -> ssl.SSLContext:
    """Return a context for a server whose certificate does not matter."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def asked(machine: Machine) -> tuple[int, str]:
    """Return status and type of the answer to a path that nothing serves, at the virtual address; 0 where there is none."""
    try:
        with closing(HTTPSConnection("127.0.0.1", machine.https, timeout=30, context=trusting())) as line:
            line.request("GET", "/nothing-is-here")
            answer = line.getresponse()
            return answer.status, answer.headers["Content-Type"]
    except (OSError, HTTPException) as error:
        return 0, str(error)
