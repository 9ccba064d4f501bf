"""The lab provider: hosts as system containers (Debian 13, systemd as PID 1, reached over SSH) on this machine.

What a cloud gives, and no more: a network, hosts from an image, volumes that outlive a host, an SSH key for the first
log-in. The role `fleet` asks for it through Ansible; by hand: `python -m freehold.lab --help`.

A lab's state lies in `.state/<lab>/` of the checkout: lab.json, ssh/, volumes/ and what other parts keep there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
USER = "admin"
SUITE = "trixie"
IMAGES = "localhost/freehold"
START_SECONDS = 60
# The weight of all hosts of a lab together, the most there is. A session of this machine's processes has 1024, and a playbook's
# are many: with 16384, orders took up to 5 s beside a deploy on a busy machine, of which 13 in 2,158 failed (with this 1.5 s, none).
HOSTS_CPU_SHARES = 262144
# The weight of a host that starts, where one that runs has 1024, and for how long.
STARTING_CPU_SHARES = 128
STARTING_SECONDS = 30
EXIT_CODES = Path("/run/libpod/exits")
OLD_IMAGE_DAYS = 7
KEPT_IMAGES = 3  # of a tier: a change of a role makes another one, of up to a gigabyte
CAP_SYS_RESOURCE = 24

T = TypeVar("T")

PACKAGES = (
    "acl",
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "nftables",
    "openssh-server",
    "openssl",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
)

# What a cloud's image has beyond its packages: a first user without a password, SSH host keys made at the first boot.
# udevd stays away: in each host it would name and number the network cards of all. The kernel's modules are the
# machine's. Nothing upgrades by itself.
CUSTOMIZE = f"""
useradd --create-home --shell /bin/bash --password '*' {USER}
install -d -o {USER} -g {USER} -m 0700 /home/{USER}/.ssh
echo '{USER} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/90-{USER}
chmod 0440 /etc/sudoers.d/90-{USER}
cat >/etc/systemd/system/ssh-host-key.service <<'UNIT'
[Unit]
Description=SSH host key of this host
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N '' -C '' -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=multi-user.target
UNIT
systemctl enable ssh-host-key.service
systemctl disable apt-daily.timer apt-daily-upgrade.timer
for unit in modules-load.service udevd.service udevd-control.socket udevd-kernel.socket udev-trigger.service; do
    ln -s /dev/null "/etc/systemd/system/systemd-$unit"
done
rm -f /etc/ssh/ssh_host_* /etc/hostname /var/cache/apt/*.bin
: >/etc/machine-id
"""
# The lists stay in the image, so that the first installation on a host need not fetch them.
APT_OPTIONS = ('Acquire::GzipIndexes "true"', 'Acquire::Languages "none"', 'Acquire::Retries "3"')
DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
)


class LabError(Exception):
    """What the lab cannot do, in words for the one who runs it."""


@dataclass(frozen=True)
class Volume:
    """A disk of limited size that outlives its host, seen at one or more paths of it."""

    name: str
    size_mb: int
    paths: tuple[str, ...]


@dataclass(frozen=True)
class HostSpec:
    """What a host of the lab is made from."""

    name: str
    address: str
    tier: str = ""
    zone: str = ""
    memory_mb: int = 1024
    cpus: float = 1.0
    image: str = ""
    """Whose tier's image to start from, if not its own; `base` is one."""
    volumes: tuple[Volume, ...] = ()


@dataclass(frozen=True)
class Host:
    """A host as podman knows it; `running` is whether its first process lives, whatever podman believes."""

    name: str
    container: str
    running: bool
    pid: int
    address: str
    tier: str
    zone: str
    image: str
    memory_mb: int
    cpus: float
    labels: Mapping[str, str] = field(default_factory=dict)


def cache_folder() -> Path:
    """Return the folder of what is worth keeping between labs."""
    return Path(os.environ.get("FREEHOLD_CACHE") or Path.home() / ".cache" / "freehold")


def lab_name() -> str:
    """Return FREEHOLD_LAB or a name of this checkout's own: its folder and a hash of its path."""
    name = os.environ.get("FREEHOLD_LAB", "")
    if not name:
        folder = re.sub(r"[^a-z0-9]+", "-", ROOT.name.lower()).strip("-")[:16] or "lab"
        name = f"{folder}-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:6]}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise LabError(f"FREEHOLD_LAB={name!r}: a lab's name is at most 31 lower-case letters, digits and dashes.")
    return name


def run(*command: str, data: str | None = None, env: Mapping[str, str] | None = None, root: bool = True) -> str:
    """Return what a command printed; raises LabError with its words. `root` asks for sudo where it is needed."""
    full = list(command)
    if env:
        full = ["env", *(f"{key}={value}" for key, value in env.items()), *full]
    if root and os.geteuid() != 0:
        full = ["sudo", *full]
    try:
        result = subprocess.run(full, input=data, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LabError(f"{full[0]} is not installed on this machine.") from error
    if result.returncode:
        raise LabError(f"{shlex.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes on a file that may be made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hybrid_cgroups() -> bool:
    """Return whether this machine still mounts cgroup controllers of version 1."""
    return not Path("/sys/fs/cgroup/cgroup.controllers").exists()


def may_raise_limits() -> bool:
    """Return whether this process, and so podman, may raise resource limits (CAP_SYS_RESOURCE)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return os.geteuid() != 0 or (effective is not None and bool(int(effective[1], 16) >> CAP_SYS_RESOURCE & 1))


def containers_conf() -> str:
    """Return podman's settings for labs, by what this machine has."""
    lines = ["[network]", 'network_backend = "netavark"', "[engine]", 'events_logger = "file"']
    if hybrid_cgroups():
        lines += ['runtime = "runc"', 'cgroup_manager = "cgroupfs"']
    lines += ["[containers]", "pids_limit = 0"]
    if not may_raise_limits():
        lines += ['default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]']
    return "\n".join([*lines, ""])


def apt_sources() -> list[str]:
    """Return the sources of the machine's own Debian mirror for the hosts' release; none: the mirror that is default.

    FREEHOLD_DEBIAN_MIRROR, an address, goes before the machine's configuration.
    """
    chosen = os.environ.get("FREEHOLD_DEBIAN_MIRROR")
    if chosen:
        return [f"deb {chosen} {SUITE} main", f"deb {chosen} {SUITE}-updates main"]
    release = dict(
        re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(encoding="utf-8"), re.MULTILINE)
    )
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        return []
    lines = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(CODENAME) $(COMPONENT)", root=False)
    found: list[str] = []
    for line in lines.splitlines():
        uri, _, suite, component = [*line.split(" "), "", "", ""][:4]
        wanted = {
            codename: SUITE,
            f"{codename}-updates": f"{SUITE}-updates",
            f"{codename}-security": f"{SUITE}-security",
        }
        if component == "main" and suite in wanted and uri.startswith("http"):
            source = f"deb {uri} {wanted[suite]} main"
            if source not in found:
                found.append(source)
    return found if any(f" {SUITE} " in source for source in found) else []


class Lab:
    """One lab: its state folder, its network and its hosts."""

    def __init__(self, name: str) -> None:
        """Name the lab; nothing is read or made."""
        self.name = name
        self.state = ROOT / ".state" / name
        self.key = self.state / "ssh" / "id_ed25519"
        self.known_hosts = self.state / "ssh" / "known_hosts"
        self.network = f"freehold-{name}"

    # ---- state -------------------------------------------------------------------------------------------------

    @property
    def file(self) -> Path:
        """Where the lab's description lies."""
        return self.state / "lab.json"

    def description(self) -> dict[str, Any]:
        """Return lab.json; empty while the lab was never made."""
        if not self.file.exists():
            return {}
        description: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return description

    def describe(self, **changes: Any) -> None:  # noqa: ANN401
        """Change keys of lab.json."""
        with self.lock("lab"):
            description = {**self.description(), **changes}
            temporary = self.file.with_suffix(".new")
            temporary.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            temporary.replace(self.file)

    @property
    def prefix(self) -> str:
        """The first three numbers of the lab's addresses, e.g. 10.20.30."""
        prefix = self.description().get("prefix")
        if not prefix:
            raise LabError(f"The lab {self.name} does not exist yet: ansible-playbook ansible/lab.yml makes it.")
        return str(prefix)

    def lock(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Hold one of the lab's locks."""
        return locked(self.state / "locks" / what)

    def prepare(self, *, dry: bool = False) -> bool:
        """Have the state folder, the SSH key, the network and the base image; return whether anything was made."""
        if dry:
            return not self.description().get("images")
        changed = False
        with self.lock("prepare"):
            self.state.chmod(0o700)
            if not self.key.exists():
                self.key.parent.mkdir(exist_ok=True, mode=0o700)
                comment = f"freehold lab {self.name}"
                run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(self.key), root=False)
                self.known_hosts.touch(mode=0o600)
                changed = True
            changed = self._have_network() or changed
            image = base_image_name()
            if self.description().get("images", {}).get("base") != image or not self.image_exists(image):
                changed = self._have_base_image(image) or changed
                self.describe(images={**self.description().get("images", {}), "base": image})
        return changed

    # ---- podman ------------------------------------------------------------------------------------------------

    def podman(self, *arguments: str, data: str | None = None) -> str:
        """Return what podman printed, under the labs' own settings."""
        file = cache_folder() / "containers.conf"
        settings = containers_conf()
        if not file.exists() or file.read_text(encoding="utf-8") != settings:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}")
            temporary.write_text(settings, encoding="utf-8")
            temporary.replace(file)
        return run("podman", *arguments, data=data, env={"CONTAINERS_CONF": str(file)})

    def image_exists(self, image: str) -> bool:
        """Return whether podman has the image."""
        try:
            self.podman("image", "exists", image)
        except LabError:
            return False
        return True

    def _have_network(self) -> bool:
        networks = json.loads(self.podman("network", "ls", "--format", "json") or "[]")
        mine = next((n for n in networks if n["name"] == self.network), None)
        known = self.description().get("prefix")
        if mine:
            prefix = mine["subnets"][0]["subnet"].rpartition(".")[0]
            if prefix != known:
                self.describe(name=self.name, prefix=prefix)
            return False
        for prefix in [known] if known else self._free_prefixes(networks):
            subnet, gateway = f"{prefix}.0/24", f"{prefix}.1"
            label = f"freehold.lab={self.name}"
            try:
                self.podman(
                    *("network", "create", "--subnet", subnet, "--gateway", gateway, "--disable-dns"),
                    *("--label", label, self.network),
                )
            except LabError as error:
                # Another lab took it between our look and our step.
                if known or "subnet" not in str(error):
                    raise
                continue
            self.describe(name=self.name, prefix=prefix)
            return True
        raise LabError("No /24 under 10.0.0.0/8 is free on this machine.")

    def _free_prefixes(self, networks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Yield prefixes that no route, address or podman network of this machine touches, the lab's own first."""
        taken = [net["subnet"] for network in networks for net in network.get("subnets") or []]
        taken += [r["dst"] for r in json.loads(run("ip", "-j", "-4", "route", "show", "table", "all", root=False))]
        taken += [
            f"{info['local']}/{info['prefixlen']}"
            for link in json.loads(run("ip", "-j", "-4", "address", root=False))
            for info in link.get("addr_info", [])
        ]
        used = [ipaddress.ip_network(t, strict=False) for t in taken if t != "default" and ":" not in t]
        first = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:2])
        for step in range(65536):
            high, low = divmod((first + step) % 65536, 256)
            network = ipaddress.ip_network(f"10.{high}.{low}.0/24")
            if not any(network.overlaps(other) for other in used if other.version == 4):
                yield f"10.{high}.{low}"

    # ---- images ------------------------------------------------------------------------------------------------

    def _have_base_image(self, image: str) -> bool:
        """Import the base image, after building it where the cache does not have it; return whether that was needed."""
        archive = cache_folder() / "images" / f"{image.rpartition(':')[2]}.tar"
        with locked(cache_folder() / "locks" / "base-image"):
            if self.image_exists(image):
                return False
            if not archive.exists():
                self._build_base_archive(archive)
                for old in archive.parent.glob("base-*.tar"):
                    if old.stat().st_mtime < time.time() - OLD_IMAGE_DAYS * 86400:
                        run("rm", "-f", str(old))
                self._forget_old_images("base")
            self.podman("import", "--quiet", "--change", "CMD /sbin/init", str(archive), image)
        return True

    def _build_base_archive(self, archive: Path) -> None:
        archive.parent.mkdir(parents=True, exist_ok=True)
        temporary = archive.with_suffix(f".{os.getpid()}.tar")
        try:
            run(
                *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
                *(f"--aptopt={option}" for option in APT_OPTIONS),
                *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
                "--skip=cleanup/apt/lists",
                f'--customize-hook=chroot "$1" sh -e -c {shlex.quote(CUSTOMIZE)}',
                *(SUITE, str(temporary), *apt_sources()),
            )
            run("mv", str(temporary), str(archive))
        finally:
            run("rm", "-f", str(temporary))

    def image_of(self, tier: str) -> str:
        """Return the newest image for a host of this tier: its golden image, or the base image; `base` is a tier too."""
        images = self.description().get("images", {})
        image = str(images.get(tier, ""))
        return image if image and self.image_exists(image) else str(images["base"])

    def use_image(self, tier: str, image: str, *, dry: bool = False) -> None:
        """Have the tier's next hosts start from this image."""
        images = self.description().get("images", {})
        if images.get(tier) != image and not dry:
            with self.lock("images"):
                self.describe(images={**self.description().get("images", {}), tier: image})

    def _forget_old_images(self, tier: str) -> None:
        """Remove the tier's images that no host of any lab uses, but for the newest few that were made lately."""
        listed = json.loads(self.podman("images", "--format", "json", "--filter", f"reference={IMAGES}:{tier}-*"))
        used = set(self.podman("ps", "--all", "--no-trunc", "--format", "{{.ImageID}}").split())
        listed.sort(key=lambda entry: entry["Created"], reverse=True)
        for place, entry in enumerate(listed):
            old = place >= KEPT_IMAGES or entry["Created"] < time.time() - OLD_IMAGE_DAYS * 86400
            if entry["Id"] not in used and old:
                self.podman("rmi", *entry["Names"])

    # ---- hosts -------------------------------------------------------------------------------------------------

    def hosts(self) -> list[Host]:
        """Return the lab's hosts, dead ones too, by name."""
        listed = json.loads(self.podman("ps", "--all", "--filter", f"label=freehold.lab={self.name}", "--format=json"))
        if not listed:
            return []
        inspected = json.loads(self.podman("container", "inspect", *(entry["Id"] for entry in listed)))
        return sorted((self._host(entry) for entry in inspected), key=lambda host: host.name)

    def host(self, name: str) -> Host:
        """Return one host; raises LabError where the lab has none of that name."""
        found = self._find(name)
        if found is None:
            raise LabError(f"The lab {self.name} has no host {name}.")
        return found

    def _find(self, name: str) -> Host | None:
        container = self._container(name)
        try:
            self.podman("container", "exists", container)
        except LabError:
            return None
        return self._host(json.loads(self.podman("container", "inspect", container))[0])

    def _container(self, name: str) -> str:
        return f"{self.network}-{name}"

    def _host(self, inspected: Mapping[str, Any]) -> Host:
        labels = inspected["Config"]["Labels"]
        pid = int(inspected["State"]["Pid"])
        limits = inspected["HostConfig"]
        return Host(
            name=labels["freehold.host"],
            container=inspected["Name"],
            running=inspected["State"]["Status"] == "running" and _lives(pid, inspected["Id"]),
            pid=pid,
            address=labels["freehold.address"],
            tier=labels["freehold.tier"],
            zone=labels["freehold.zone"],
            image=labels["freehold.image"],
            memory_mb=int(limits["Memory"]) >> 20,
            cpus=int(limits["NanoCpus"]) / 1e9,
            labels=labels,
        )

    def up(self, spec: HostSpec, *, dry: bool = False) -> bool:
        """Have the host running and reachable over SSH; return whether anything had to be done."""
        found = self._find(spec.name)
        if found and found.running:
            differences = _differences(spec, found)
            if differences:
                raise LabError(
                    f"{spec.name} runs with {differences}. Remove it (fleet_state=absent, --limit {spec.name}) and "
                    "bring it up again; its volumes are kept with fleet_keep_volumes=true."
                )
            # A run that was interrupted may have left a host that runs and that nobody can reach.
            if self._pinned(spec.address):
                return False
            if not dry:
                self._wait(spec.name, spec.address)
            return True
        if dry:
            return True
        for volume in spec.volumes:
            self._mount(spec.name, volume)
        if found and not self._start(found.container):
            self._remove_container(spec.name)
            found = None
        if not found:
            self._create(spec)
            if not self._start(self._container(spec.name)):
                self.podman("start", self._container(spec.name))
        self._wait(spec.name, spec.address)
        return True

    def _create(self, spec: HostSpec) -> None:
        image = self.image_of(spec.image or spec.tier)
        labels = {
            "lab": self.name,
            "host": spec.name,
            "address": spec.address,
            "tier": spec.tier,
            "zone": spec.zone,
            "image": image,
        }
        binds = [
            f"{self._folder(spec.name, volume.name, path)}:{path}" for volume in spec.volumes for path in volume.paths
        ]
        container = self._container(spec.name)
        self._fill(image, spec)
        try:
            self.podman(
                *("create", "--name", container, "--hostname", spec.name, "--network", self.network),
                *("--ip", spec.address, "--mac-address", _mac(spec.address), "--no-hosts"),
                *("--memory", f"{spec.memory_mb}m", "--memory-swap", f"{spec.memory_mb}m", "--cpus", f"{spec.cpus:g}"),
                *("--shm-size", f"{spec.memory_mb // 2}m", "--stop-timeout", "30"),
                *("--systemd=always", "--cgroupns=private", "--cap-add=all", "--cap-drop=SYS_TIME"),
                *self.placing(),
                *("--security-opt", "unmask=ALL", "--security-opt", "seccomp=unconfined"),
                *(argument for key, value in labels.items() for argument in ("--label", f"freehold.{key}={value}")),
                *(argument for bind in binds for argument in ("--volume", bind)),
                *(image, "/bin/sh", "-c", _boot_command()),
            )
            root = Path(self.podman("mount", container).strip())
            self._personalize(root, spec)
        except LabError:
            # Half a host would look like a whole one to the next run.
            self._remove_container(spec.name)
            raise

    def _personalize(self, root: Path, spec: HostSpec) -> None:
        """Give the host what a cloud's first boot would: who may log in, its name, and the limits of the lab."""
        authorized = root / "home" / USER / ".ssh" / "authorized_keys"
        run("tee", str(authorized), data=self.key.with_suffix(".pub").read_text(encoding="utf-8"))
        run("chown", "--reference", str(authorized.parent), str(authorized))
        run("chmod", "0600", str(authorized))
        hosts = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{spec.address} {spec.name}\n"
        run("tee", str(root / "etc" / "hosts"), data=hosts)
        if hybrid_cgroups():
            # The hosts see no pids controller, and podman inside them would insist on one.
            run("install", "-d", str(root / "etc/containers/containers.conf.d"))
            settings = "[containers]\npids_limit = 0\n"
            run("tee", str(root / "etc/containers/containers.conf.d/90-lab.conf"), data=settings)

    def _start(self, container: str) -> bool:
        """Return whether the container lives after starting it."""
        try:
            self._bury(container)
            self.placing()
            self.podman("start", container)
            inspected = json.loads(self.podman("container", "inspect", container))[0]
        except LabError:
            return False
        return self._host(inspected).running

    def placing(self) -> list[str]:
        """Return podman's arguments that put a container where the lab's processes come before all others of this machine."""
        if not hybrid_cgroups():
            return []
        # Else all hosts together would weigh as much as one process of this machine.
        group = f"/sys/fs/cgroup/cpu{self._cgroup}"
        run("mkdir", "--parents", group)
        run("tee", f"{group}/cpu.shares", data=str(HOSTS_CPU_SHARES))
        return ["--cgroup-parent", self._cgroup]

    @property
    def _cgroup(self) -> str:
        return f"/{self._container('hosts')}"

    def _bury(self, container: str) -> None:
        """Tell podman of a death that it missed because the process that watches the container was killed too.

        That process would have left the exit code in a file, without which podman neither starts nor stops the container.
        """
        inspected = json.loads(self.podman("container", "inspect", container))[0]
        identity, state = inspected["Id"], inspected["State"]
        if state["Status"] == "running" and not _lives(int(state["Pid"]), identity):
            run("tee", str(EXIT_CODES / identity), data="137")
            self.podman("ps", "--all", "--sync", "--filter", f"id={identity}")

    def _wait(self, name: str, address: str) -> None:
        """Wait until the host takes the lab's key over SSH, and pin the host key that was read past the network."""
        end = time.monotonic() + START_SECONDS
        root = Path(self.podman("mount", self._container(name)).strip())
        # ssh-keygen makes the file before it has a key: an empty one is none yet.
        public = str(root / "etc/ssh/ssh_host_ed25519_key.pub")
        key = _retry(end, lambda: run("grep", "^ssh-ed25519 .", public), f"{name}: no host key")
        self._pin(address, key.strip())
        _retry(end, lambda: _banner(address), f"{name} ({address}): nothing answers on port 22")
        _retry(end, lambda: self.ssh(address, "true"), f"{name} ({address}): no log-in over SSH")

    def ssh(self, address: str, *command: str) -> str:
        """Return what a command printed on a host."""
        options = (
            "BatchMode=yes",
            "ConnectTimeout=5",
            "StrictHostKeyChecking=yes",
            f"UserKnownHostsFile={self.known_hosts}",
        )
        arguments = [argument for option in options for argument in ("-o", option)]
        return run("ssh", "-F", "none", *arguments, "-i", str(self.key), f"{USER}@{address}", *command, root=False)

    def _pinned(self, address: str) -> bool:
        return any(line.startswith(f"{address} ") for line in self.known_hosts.read_text(encoding="utf-8").splitlines())

    def _pin(self, address: str, key: str | None) -> None:
        with self.lock("known_hosts"):
            lines = self.known_hosts.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.split(" ", 1)[0] != address]
            if key:
                kept.append(f"{address} {' '.join(key.split()[:2])}")
            if kept != lines:
                self.known_hosts.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
                self._hang_up(address)

    def _hang_up(self, address: str) -> None:
        """End Ansible's kept connection to a host that is gone."""
        master = control_path(self.name).replace("%h", address)
        if Path(master).is_socket():
            with contextlib.suppress(LabError):
                run("ssh", "-F", "none", "-o", f"ControlPath={master}", "-O", "exit", address, root=False)

    def down(self, name: str, *, keep_volumes: bool = False, dry: bool = False) -> bool:
        """Remove a host, and its volumes unless told to keep them; return whether there was anything."""
        found = self._find(name)
        if dry:
            return bool(found)
        if found:
            self._remove_container(name)
            self._pin(found.address, None)
        volumes = self._volumes(name)
        for volume in volumes:
            self._unmount(name, volume)
        if volumes and not keep_volumes:
            run("rm", "-rf", str(self.state / "volumes" / name))
        return bool(found or (volumes and not keep_volumes))

    def _remove_container(self, name: str) -> None:
        self.podman("rm", "--force", "--ignore", "--time", "0", self._container(name))

    def stop(self) -> None:
        """Shut all hosts down and free their loop devices; everything is kept for the next `up`."""
        hosts = self.hosts()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda host: self.podman("stop", host.container), hosts))
        for host in hosts:
            for volume in self._volumes(host.name):
                self._unmount(host.name, volume)

    def destroy(self) -> None:
        """Remove the lab's hosts, network, volumes and state, and nothing else."""
        if not self.state.exists():
            return
        folder = self.state / "volumes"
        names = {host.name for host in self.hosts()} | (
            {path.name for path in folder.iterdir()} if folder.exists() else set()
        )
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self.down, sorted(names)))
        networks = self.podman("network", "ls", "--quiet", "--filter", f"name=^{self.network}$").split()
        if networks:
            self.podman("network", "rm", self.network)
        groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*{self._cgroup}")] if hybrid_cgroups() else []
        if groups:
            run("find", *groups, "-depth", "-type", "d", "-delete")
        run("rm", "-rf", str(self.state))

    def commit(self, name: str, tier: str, image: str) -> None:
        """Make the tier's image of a host that was cleaned for it and lacks nothing but what the lab gave this host.

        The host is used up.
        """
        container = self.host(name).container
        self.podman("kill", container)
        self.podman("wait", container)
        root = Path(self.podman("mount", container).strip())
        # The record of the last session is written as it ends, after all cleaning.
        given = (
            "var/log/wtmp.db",
            f"home/{USER}/.ssh/authorized_keys",
            "etc/hosts",
            "etc/containers/containers.conf.d/90-lab.conf",
        )
        run("rm", "-f", *(str(root / path) for path in given))
        self.podman("umount", container)
        self.podman("commit", "--quiet", "--change", "CMD /sbin/init", container, image)
        self.down(name)
        self.use_image(tier, image)
        self._forget_old_images(tier)

    # ---- failures ----------------------------------------------------------------------------------------------

    def power_cut(self, name: str) -> None:
        """Cut a host's power: its link first, so that no peer hears a goodbye, then all of its processes."""
        host = self.host(name)
        if not host.running:
            raise LabError(f"{name} does not run.")
        run("nsenter", "--target", str(host.pid), "--net", "ip", "link", "set", "eth0", "down")
        self.podman("kill", "--signal", "KILL", host.container)
        self._hang_up(host.address)

    def power_on(self, name: str, *, wait: bool = True) -> None:
        """Start a host again that lost its power, with its disk as it was."""
        host = self.host(name)
        if host.running:
            raise LabError(f"{name} runs already.")
        for volume in self._volumes(name):
            self._mount(name, volume)
        if not self._start(host.container):
            self.podman("start", host.container)
        if wait:
            self._wait(name, host.address)

    # ---- volumes -----------------------------------------------------------------------------------------------

    def _mount_point(self, host: str, volume: str) -> Path:
        return self.state / "volumes" / host / volume

    def _volumes(self, host: str) -> list[Volume]:
        folder = self.state / "volumes" / host
        files = sorted(folder.glob("*.ext4")) if folder.exists() else []
        return [Volume(file.stem, file.stat().st_size >> 20, ()) for file in files]

    def _mount(self, host: str, volume: Volume) -> None:
        """Have a volume's file system, and have it mounted on this machine, where podman binds its folders from."""
        point = self._mount_point(host, volume.name)
        if point.is_mount():
            return
        point.mkdir(parents=True, exist_ok=True)
        file = point.with_suffix(".ext4")
        if not file.exists():
            temporary = file.with_suffix(".new")
            with temporary.open("wb") as new:
                new.truncate(volume.size_mb << 20)
            run("mkfs.ext4", "-q", "-m", "0", "-L", volume.name[:16], str(temporary), root=False)
            temporary.replace(file)
        run("mount", "-o", "loop", str(file), str(point))
        device = run("findmnt", "--noheadings", "--output", "SOURCE", str(point), root=False).strip()
        # Past this machine's page cache: else each host's fsync waits for what all the others wrote.
        with contextlib.suppress(LabError):  # not every file system can
            run("losetup", "--direct-io=on", device)

    def _unmount(self, host: str, volume: Volume) -> None:
        point = self._mount_point(host, volume.name)
        if point.is_mount():
            run("umount", str(point))

    def _folder(self, host: str, volume: str, path: str) -> Path:
        return self._mount_point(host, volume) / path.strip("/").replace("/", "-")

    def _fill(self, image: str, spec: HostSpec) -> None:
        """Give new volumes' folders what the image has at their paths, owners and modes included."""
        folders = {path: self._folder(spec.name, volume.name, path) for volume in spec.volumes for path in volume.paths}
        missing = {path: folder for path, folder in folders.items() if not folder.exists()}
        if not missing:
            return
        root = Path(self.podman("image", "mount", image).strip())
        try:
            for path, folder in missing.items():
                source, temporary = root / path.strip("/"), folder.with_suffix(".new")
                run("rm", "-rf", str(temporary))
                if source.is_dir():
                    run("cp", "--archive", str(source), str(temporary))
                else:
                    run("install", "-d", "-m", "0755", str(temporary))
                run("mv", str(temporary), str(folder))
        finally:
            self.podman("image", "umount", image)


def control_path(lab: str) -> str:
    """Return the path of the sockets of kept SSH connections; %h is the host's address."""
    return str(Path.home() / ".ansible" / "cp" / f"{lab}-%h")


def base_image_name() -> str:
    """Return the name of the base image, by the content of its recipe."""
    recipe = json.dumps([SUITE, PACKAGES, CUSTOMIZE, APT_OPTIONS, DPKG_OPTIONS, apt_sources()])
    return f"{IMAGES}:base-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def golden_image_name(tier: str, roles: Sequence[str]) -> str:
    """Return the name of a tier's golden image, by the content of what its roles' install steps read."""
    parts = [base_image_name().encode(), (ROOT / "roles" / "fleet" / "files" / "clean-image.sh").read_bytes()]
    for role in roles:
        folder = ROOT / "roles" / role
        install = folder / "tasks" / "install.yml"
        if not install.exists():
            raise LabError(f"The role {role} of the {tier} image has no tasks/install.yml.")
        words = install.read_text(encoding="utf-8")
        files = [install, *sorted(path for name in ("files", "vars") for path in (folder / name).rglob("*"))]
        files += [path for path in sorted((folder / "templates").rglob("*")) if path.name in words]
        for file in files:
            # A module that a test imported leaves a compiled one.
            if file.is_file() and file.parent.name != "__pycache__":
                parts += [str(file.relative_to(ROOT)).encode(), file.read_bytes()]
    return f"{IMAGES}:{tier}-{hashlib.sha256(bytes([0]).join(parts)).hexdigest()[:12]}"


def _boot_command() -> str:
    """Return what becomes the host's systemd.

    podman puts a tmpfs over the journal, which is to outlive a power cut; on machines with hybrid cgroups the host gets
    a view of cgroups that has version 2 alone, as podman inside it needs, and finds its memory and limits of version 1 elsewhere, to read.

    While it starts it gives way to the hosts that run, whose processors it would not have elsewhere: on a slow machine orders
    waited for 5 s beside such a start.
    """
    steps = ["umount /var/log/journal"]
    if hybrid_cgroups():
        # Held open, since the host does not see the file later.
        steps += [
            "mount -o remount,bind,rw /sys/fs/cgroup/cpu",
            "exec 9> /sys/fs/cgroup/cpu/cpu.shares",
            f"echo {STARTING_CPU_SHARES} >&9",
            f"{{ (sleep {STARTING_SECONDS}; echo 1024 >&9) & }}",
            "exec 9>&-",
        ]
        # Were the controller of processors mounted, RabbitMQ would run on as many schedulers as the limit says.
        steps += [
            "mkdir -p /run/cgroup1/cpu /run/cgroup1/memory",
            "cp /sys/fs/cgroup/cpu/cpu.cfs_*_us /run/cgroup1/cpu",
        ]
        steps += [
            "mount --bind /sys/fs/cgroup/memory /run/cgroup1/memory",
            "mount -o remount,bind,ro /run/cgroup1/memory",
        ]
        steps += ["umount -R --lazy /sys/fs/cgroup", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"]
    return " && ".join([*steps, "exec /sbin/init"])


def _mac(address: str) -> str:
    """Return a network card's address that a host keeps when it is made anew."""
    return ":".join(["02", "46", *(f"{int(number):02x}" for number in address.split("."))])


def _lives(pid: int, container: str) -> bool:
    """Return whether the process is there, more than a zombie, and still that container's."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][:1]
        return pid > 0 and state not in "ZX" and container in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    except OSError:
        return False


def _differences(spec: HostSpec, host: Host) -> str:
    pairs = {
        "address": (host.address, spec.address),
        "memory_mb": (host.memory_mb, spec.memory_mb),
        "cpus": (host.cpus, spec.cpus),
        "zone": (host.zone, spec.zone),
    }
    return ", ".join(f"{key} {old} instead of {new}" for key, (old, new) in pairs.items() if old != new)


def _banner(address: str) -> None:
    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            if not connection.recv(4).startswith(b"SSH"):
                raise LabError("no SSH server")
    except OSError as error:
        raise LabError(str(error)) from error


def _retry(end: float, attempt: Callable[[], T], failure: str) -> T:
    """Return what the attempt returns once it does; raises LabError with the last failure at the end of time."""
    while True:
        try:
            return attempt()
        except LabError as error:
            if time.monotonic() > end:
                raise LabError(f"{failure} after {START_SECONDS} s: {error}") from error
        time.sleep(0.1)


def main() -> int:
    """Run one command on the lab of FREEHOLD_LAB or of this checkout; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m freehold.lab", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "prepare": "make state folder, key, network and base image",
        "list": "print the hosts",
        "stop": "shut the hosts down, keep everything",
        "destroy": "remove the lab",
        "power-cut": "cut a host's link, then kill it",
        "power-on": "start a host that lost its power",
        "ssh": "log in to a host, or run a command there",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text)
        if name in {"power-cut", "power-on", "ssh"}:
            command.add_argument("host")
        if name == "ssh":
            command.add_argument("words", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    try:
        lab = Lab(lab_name())
        match arguments.command:
            case "prepare":
                lab.prepare()
            case "list":
                for host in lab.hosts():
                    print(f"{host.name:10} {host.address:15} {'running' if host.running else 'dead':8} {host.image}")
            case "stop":
                lab.stop()
            case "destroy":
                lab.destroy()
            case "power-cut":
                lab.power_cut(arguments.host)
            case "power-on":
                lab.power_on(arguments.host)
            case "ssh":
                print(lab.ssh(lab.host(arguments.host).address, *arguments.words), end="")
    except LabError as error:
        print(f"freehold.lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
