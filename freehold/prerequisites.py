"""What this machine must have beside Python: installed on Debian and Ubuntu, listed elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from freehold.lab import cache_folder
from freehold.progress import Phase

# Program or file -> Debian's package, for what each part of the work needs.
LINT = {
    "shellcheck": "shellcheck",
    "ssh": "openssh-client",
    "vagrant": "vagrant",
    "/usr/share/vagrant-plugins/plugins.d/vagrant-libvirt.json": "vagrant-libvirt",
}
# Programs of packages that would start a service here: they are taken out of the package, which is not installed.
UNPACKED = {"promtool": ("prometheus", "usr/bin/promtool")}
# To make the order service's image and to push it.
IMAGE = {
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "skopeo": "skopeo",
    "ssh": "openssh-client",
    "xz": "xz-utils",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
LAB = {
    **IMAGE,
    "podman": "podman",
    "runc": "runc",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "mkfs.ext4": "e2fsprogs",
}
# A machine with a kernel of its own, for tests.
VM = {**IMAGE, "mkfs.ext4": "e2fsprogs", "qemu-system-x86_64": "qemu-system-x86"}


class MissingPrerequisitesError(Exception):
    """Programs are missing and this module does not know how to install them here."""


# Tiers that run beside one another may both need something, and Debian's package manager takes one at a time.
_ALONE = threading.Lock()


def missing(needed: dict[str, str]) -> dict[str, str]:
    """Return the part of `needed` that this machine does not have."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return {
        name: package
        for name, package in needed.items()
        if not (Path(name).exists() if name.startswith("/") else shutil.which(name, path=path))
    }


def ensure(needed: dict[str, str], phase: Phase, log: Path) -> list[str]:
    """Install what is missing and return the packages that were installed.

    Raises MissingPrerequisitesError where the system is neither Debian nor Ubuntu.
    """
    with _ALONE:
        return _ensure(needed, phase, log)


def _ensure(needed: dict[str, str], phase: Phase, log: Path) -> list[str]:
    absent = missing(needed)
    if not absent:
        return []
    packages = sorted(set(absent.values()))
    if not _is_debian():
        listed = "\n".join(f"  {name} (Debian's package {package})" for name, package in sorted(absent.items()))
        raise MissingPrerequisitesError(f"This machine lacks, and only on Debian and Ubuntu is it installed:\n{listed}")
    phase.text = f"installs {' '.join(packages)}"
    phase.announce(phase.text)
    sudo = [] if os.geteuid() == 0 else ["sudo", "--preserve-env=DEBIAN_FRONTEND"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    phase.run([*sudo, "apt-get", "update", "--quiet"], log, env=env)
    phase.run([*sudo, "apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages], log, env=env)
    still = missing(absent)
    if still:
        raise MissingPrerequisitesError(f"Installed {', '.join(packages)}, yet still missing: {', '.join(still)}.")
    return packages


def unpack(name: str, phase: Phase, log: Path) -> Path:
    """Return the path of a program of UNPACKED, after taking it out of Debian's package where the machine does not have it.

    Raises MissingPrerequisitesError where the system is neither Debian nor Ubuntu, and CommandError where the package is not found.
    """
    with _ALONE:
        return _unpack(name, phase, log)


def _unpack(name: str, phase: Phase, log: Path) -> Path:
    if found := shutil.which(name):
        return Path(found)
    package, inside = UNPACKED[name]
    program = cache_folder() / "tools" / name
    if program.exists():
        return program
    if not _is_debian():
        raise MissingPrerequisitesError(f"This machine lacks {name} (Debian's package {package}). Install it.")
    phase.text = f"fetches {name}"
    phase.announce(phase.text)
    program.parent.mkdir(parents=True, exist_ok=True)
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    with tempfile.TemporaryDirectory() as folder:
        phase.run([*sudo, "apt-get", "update", "--quiet"], log)
        phase.run(["apt-get", "download", "--quiet", package], log, cwd=Path(folder))
        (archive,) = Path(folder).glob("*.deb")
        phase.run(["dpkg-deb", "--extract", str(archive), folder], log)
        fresh = program.with_suffix(f".{os.getpid()}")
        shutil.copy2(Path(folder) / inside, fresh)
        fresh.replace(program)
    return program


def _is_debian() -> bool:
    release = Path("/etc/os-release")
    words: Iterable[str] = release.read_text().replace('"', " ").replace("=", " ").split() if release.exists() else ()
    return shutil.which("apt-get") is not None and bool({"debian", "ubuntu"} & set(words))
