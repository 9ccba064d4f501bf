"""Golden images carry programs and nothing of the host that they were made on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.lab import Lab, lab_name

TIERS = ("edge", "app", "data", "replica", "ops")
# Programs of each tier, without which an empty image would pass all the rest.
PROGRAMS = {
    "edge": ("usr/sbin/haproxy", "usr/sbin/keepalived"),
    "app": ("usr/bin/podman", "usr/sbin/haproxy"),
    "data": (
        "usr/bin/etcd",
        "usr/bin/patroni",
        "usr/bin/valkey-server",
        "usr/lib/postgresql/17/bin/postgres",
        "usr/sbin/pgbouncer",
        "usr/sbin/rabbitmq-server",
    ),
    "replica": ("usr/bin/patroni", "usr/lib/postgresql/17/bin/postgres", "usr/sbin/pgbouncer"),
    "ops": ("usr/bin/docker-registry", "usr/bin/prometheus", "usr/bin/prometheus-alertmanager", "usr/sbin/haproxy"),
}
OWN_FOLDERS = ("etc", "home", "opt", "root", "srv", "usr/local", "var")
DATA_FOLDERS = (
    "etc/freehold/pki",
    "tmp",
    "var/lib/containers",
    "var/lib/docker-registry",
    "var/lib/etcd",
    "var/lib/jaeger",
    "var/lib/loki",
    "var/lib/postgresql",
    "var/lib/prometheus",
    "var/lib/rabbitmq",
    "var/lib/syslog-ng",
    "var/lib/valkey",
    "var/log",
    "var/tmp",
)
PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
# The authorities that all the world trusts.
PUBLIC_AUTHORITIES = ("etc/ssl/certs/", "usr/share/ca-certificates/")


@pytest.fixture(scope="module", params=TIERS)
def image(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """Return a tier and the root of its golden image, which is made if it does not exist."""
    lab = Lab(lab_name())
    if not lab.image_exists(str(lab.description().get("images", {}).get(request.param))):
        subprocess.run(["ansible-playbook", "ansible/image.yml"], check=True)
    name = lab.description()["images"][request.param]
    root = Path(lab.podman("image", "mount", name).strip())
    yield request.param, root
    lab.podman("image", "umount", name)


@pytest.fixture(scope="module")
def files(image: tuple[str, Path]) -> dict[str, Path]:
    """Return the regular files of the folders where a host keeps what is its own, by path."""
    _, root = image
    found = [path for folder in OWN_FOLDERS for path in (root / folder).rglob("*")]
    return {str(path.relative_to(root)): path for path in found if path.is_file() and not path.is_symlink()}


def test_has_the_programs_of_its_tier(image: tuple[str, Path]) -> None:
    """And so is not an image of something else."""
    tier, root = image
    assert [program for program in PROGRAMS[tier] if not (root / program).exists()] == []


def test_has_no_identity(image: tuple[str, Path], files: dict[str, Path]) -> None:
    """A machine-id, host keys or a seed in an image would be those of every host."""
    _, root = image
    assert (root / "etc/machine-id").read_bytes() == b""
    assert not (root / "var/lib/dbus/machine-id").is_file() or (root / "var/lib/dbus/machine-id").is_symlink()
    names = ("ssh_host_", "random-seed", "credential.secret", ".erlang.cookie")
    assert [path for path in files if any(name in path for name in names)] == []


def test_lets_nobody_in(files: dict[str, Path]) -> None:
    """Who may log in is told to each host when it is made."""
    assert [path for path in files if path.endswith(("authorized_keys", "known_hosts"))] == []
    shadow = files["etc/shadow"].read_text().splitlines()
    assert [line for line in shadow if line.split(":")[1] not in {"*", "!", "!*"}] == []


def test_has_no_key_and_no_certificate(files: dict[str, Path]) -> None:
    """Not in any file that is a host's own, whatever its name."""
    contents = {path: file.read_bytes() for path, file in files.items() if file.stat().st_size < 1 << 20}
    assert [path for path, content in contents.items() if PRIVATE_KEY.search(content)] == []
    assert [
        path for path, content in contents.items() if CERTIFICATE in content and not path.startswith(PUBLIC_AUTHORITIES)
    ] == []


def test_has_no_data(files: dict[str, Path]) -> None:
    """No cluster was founded, nothing was logged, nothing was left lying about."""
    assert [path for path in files if path.startswith(tuple(f"{folder}/" for folder in DATA_FOLDERS))] == []


def test_starts_what_it_should(image: tuple[str, Path]) -> None:
    """What held services back while the image was made is gone."""
    _, root = image
    assert not (root / "usr/sbin/policy-rc.d").exists()


def test_knows_nothing_of_the_lab(image: tuple[str, Path], files: dict[str, Path]) -> None:
    """Neither an address of the lab nor a builder's name stands in any of its files."""
    words = (Lab(lab_name()).prefix.encode() + b".", f"build-{image[0]}".encode())
    settings = {path: file for path, file in files.items() if path.startswith("etc/")}
    assert [path for path, file in settings.items() if any(word in file.read_bytes() for word in words)] == []
    assert [path for path in settings if "90-lab" in path] == []
