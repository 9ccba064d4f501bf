"""The order service's container image, made on the controller: Debian's root file system, wheels, our code.

`python -m freehold.app_image build` prints the image's digest, which is the one that a registry shows after
`skopeo copy --preserve-digests oci-archive:FILE docker://...`, and leaves in the lab's state what `make up` reads:
`images.json` and `artifacts/orders.tar`, a link to the archive in the cache. Unchanged sources give the same digest: times
are fixed, names sorted, owners set, and Python's compiled files depend on their sources' content only.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import shlex
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.lab import (
    APT_OPTIONS,
    DPKG_OPTIONS,
    ROOT,
    SUITE,
    Lab,
    LabError,
    apt_sources,
    cache_folder,
    lab_name,
    locked,
    run,
)

APP = ROOT / "app"
NAME = "orders"
USER_ID = 10001
PYTHON = "3.13"
GLIBC_MINOR = 41
EPOCH = 1735689600  # the time of everything in the image: 2025-01-01

_PACKAGES = ("python3",)
_CUSTOMIZE = f"""
echo '{NAME}:x:{USER_ID}:{USER_ID}::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
echo '{NAME}:x:{USER_ID}:' >>/etc/group
rm -rf /var/cache/* /var/log/* /var/lib/apt/lists/* /etc/machine-id /etc/hostname /etc/resolv.conf
rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid- /var/lib/dpkg/*-old
find / -xdev -name __pycache__ -prune -exec rm -rf '{{}}' +
PYTHONHASHSEED=0 python3 -m compileall -q -j1 --invalidation-mode unchecked-hash /usr/lib/python{PYTHON}
"""
_COMPILE = "PYTHONHASHSEED=0 python3 -m compileall -q -j1 --invalidation-mode unchecked-hash"
_COMMAND = "#!/usr/bin/python3 -P\nfrom orders.cli import main\n\nmain()\n"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Layer:
    """One layer as a registry keeps it."""

    path: Path
    digest: str  # of the compressed file
    diff_id: str  # of the archive inside
    size: int
    unpacked: int


@dataclass(frozen=True)
class Image:
    """A built image."""

    archive: Path
    digest: str
    unpacked: int

    @property
    def reference(self) -> str:
        """What an inventory names: the repository and the digest."""
        return f"{NAME}@{self.digest}"


# ---- wheels ------------------------------------------------------------------------------------------------------------


def site_packages(requirements: Path) -> Path:
    """Return a folder with what a hash-pinned file requires, for the hosts' Python; from the cache, or else from PyPI."""
    machine = platform.machine()
    key = _hash(requirements.read_bytes(), PYTHON.encode(), machine.encode())
    folder = cache_folder() / "wheels" / f"{requirements.stem}-{key}"
    with locked(cache_folder() / "locks" / f"wheels-{key}"):
        if not folder.exists():
            temporary = folder.with_suffix(f".{os.getpid()}")
            shutil.rmtree(temporary, ignore_errors=True)
            platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in range(GLIBC_MINOR, 4, -1)]
            run(
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
                *("--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation=cp"),
                *(f"--python-version={PYTHON}", *platforms, f"--platform=manylinux2014_{machine}"),
                *(f"--target={temporary}", f"--requirement={requirements}"),
                root=False,
            )
            # Scripts name this machine's interpreter; the rest differs from one pip to the next.
            shutil.rmtree(temporary / "bin", ignore_errors=True)
            for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                for path in temporary.glob(f"*.dist-info/{name}"):
                    path.unlink()
            temporary.rename(folder)
    return folder


# ---- layers ------------------------------------------------------------------------------------------------------------


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def _tree_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return _hash(*(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() for path in files))


def _base_archive() -> Path:
    recipe = json.dumps([SUITE, _PACKAGES, _CUSTOMIZE, APT_OPTIONS, DPKG_OPTIONS, EPOCH, apt_sources()])
    archive = cache_folder() / "orders" / f"base-{_hash(recipe.encode())}.tar"
    with locked(cache_folder() / "locks" / "orders-base"):
        if not archive.exists():
            archive.parent.mkdir(parents=True, exist_ok=True)
            build_base(archive)
    return archive


def build_base(archive: Path) -> None:
    """Make the root file system: Debian's essential packages and Python, nothing that installs or serves."""
    temporary = archive.with_suffix(f".{os.getpid()}.tar")
    try:
        run(
            *("mmdebstrap", "--quiet", "--variant=essential", f"--include={','.join(_PACKAGES)}"),
            *(f"--aptopt={option}" for option in APT_OPTIONS),
            *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
            f'--customize-hook=chroot "$1" sh -e -c {shlex.quote(_CUSTOMIZE)}',
            *(SUITE, str(temporary), *apt_sources()),
            env={"SOURCE_DATE_EPOCH": str(EPOCH)},
        )
        run("mv", str(temporary), str(archive))
    finally:
        run("rm", "-f", str(temporary))


@contextmanager
def _root(base: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="orders-image-"))
    try:
        run("tar", "--extract", "--file", str(base), "--directory", str(folder), "--exclude=./dev/*")
        run("chown", f"{os.geteuid()}:{os.getegid()}", str(folder / "opt"))
        yield folder
    finally:
        run("rm", "-rf", str(folder))


def _archive(root: Path, names: list[str]) -> bytes:
    """Return paths below a root file system as an archive in which nothing tells when, where or by whom it was made."""

    def normal(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = EPOCH
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            for path in [root / name, *sorted((root / name).rglob("*"))]:
                archive.add(path, str(path.relative_to(root)), recursive=False, filter=normal)
    return buffer.getvalue()


def _layer(content: bytes, blobs: Path) -> Layer:
    compressed = gzip.compress(content, compresslevel=6, mtime=0)
    digest = hashlib.sha256(compressed).hexdigest()
    path = blobs / digest
    path.write_bytes(compressed)
    diff_id = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Layer(path, f"sha256:{digest}", diff_id, len(compressed), len(content))


def _blob(content: Any, blobs: Path, media_type: str) -> dict[str, Any]:  # noqa: ANN401
    data = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


# ---- the image ---------------------------------------------------------------------------------------------------------


def build(archive: Path | None = None) -> Image:
    """Build the image into an OCI archive, by default one in the cache, where it is built only if it is not there yet."""
    requirements = APP / "requirements.txt"
    base = _base_archive()
    key = _hash(
        *(base.name.encode(), requirements.read_bytes(), Path(__file__).read_bytes()),
        *(_tree_hash(APP / part).encode() for part in ("src", "migrations")),
    )
    archive = archive or cache_folder() / "orders" / f"image-{key}.tar"
    with locked(cache_folder() / "locks" / f"orders-{key}"):
        if not archive.exists():
            with tempfile.TemporaryDirectory(prefix="orders-image-") as folder:
                layout = Path(folder)
                _write(layout, base, site_packages(requirements))
                names = sorted(path.name for path in layout.iterdir())
                temporary = archive.with_suffix(f".{os.getpid()}")
                temporary.write_bytes(_archive(layout, names))
                temporary.replace(archive)
    return _read(archive)


def _write(folder: Path, base: Path, packages: Path) -> None:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [_layer(base.read_bytes(), blobs)]
    with _root(base) as root:
        home = root / "opt" / NAME
        home.mkdir()
        shutil.copytree(packages, home / "lib", ignore=shutil.ignore_patterns("__pycache__"))
        run("chroot", str(root), "sh", "-e", "-c", f"{_COMPILE} /opt/{NAME}/lib")
        layers.append(_layer(_archive(root, [f"opt/{NAME}/lib"]), blobs))
        for part in ("src", "migrations"):
            shutil.copytree(APP / part, home / part, ignore=shutil.ignore_patterns("__pycache__"))
        command = home / "bin" / NAME
        command.parent.mkdir()
        command.write_text(_COMMAND, encoding="utf-8")
        command.chmod(0o755)
        run("chroot", str(root), "sh", "-e", "-c", f"{_COMPILE} /opt/{NAME}/src")
        layers.append(_layer(_archive(root, [f"opt/{NAME}/{part}" for part in ("bin", "migrations", "src")]), blobs))
    home_path = f"/opt/{NAME}"
    created = "2025-01-01T00:00:00Z"
    config = {
        "architecture": _MACHINES[platform.machine()],
        "os": "linux",
        "created": created,
        "config": {
            "User": f"{USER_ID}:{USER_ID}",
            "WorkingDir": "/",
            "Cmd": [NAME, "serve"],
            "StopSignal": "SIGTERM",
            "ExposedPorts": {"8000/tcp": {}, "8001/tcp": {}},
            "Env": [
                f"PATH={home_path}/bin:/usr/bin:/bin",
                f"PYTHONPATH={home_path}/src:{home_path}/lib",
                "PYTHONDONTWRITEBYTECODE=1",
                "PYTHONUNBUFFERED=1",
            ],
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": created, "created_by": "freehold.app_image"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(config, blobs, "application/vnd.oci.image.config.v1+json"),
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer.digest, "size": layer.size}
            for layer in layers
        ],
    }
    entry = _blob(manifest, blobs, "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {
        "org.opencontainers.image.ref.name": NAME,
        "freehold.unpacked": str(sum(x.unpacked for x in layers)),
    }
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")
    index = {"schemaVersion": 2, "manifests": [entry]}
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True), encoding="utf-8")


def _read(path: Path) -> Image:
    with tarfile.open(path) as archive:
        index = archive.extractfile("index.json")
        if index is None:
            raise LabError(f"{path} is no OCI archive; remove it and try again.")
        (entry,) = json.load(index)["manifests"]
    return Image(path, entry["digest"], int(entry["annotations"]["freehold.unpacked"]))


def publish(image: Image, state: Path) -> None:
    """Tell whose state it is which image is the newest: its reference in images.json, its archive by a link."""
    artifacts = state / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    link = artifacts / f"{NAME}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(image.archive)
    link.replace(artifacts / f"{NAME}.tar")
    file = state / "images.json"
    images = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps({**images, NAME: image.reference}, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(file)


def main() -> int:
    """Run the command and return the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m freehold.app_image", description=__doc__)
    parser.add_argument("command", choices=["build"])
    parser.add_argument("state", nargs="?", type=Path, default=Lab(lab_name()).state, help="whose; else the lab's")
    arguments = parser.parse_args()
    image = build()
    publish(image, arguments.state)
    print(image.reference)
    return 0


if __name__ == "__main__":
    sys.exit(main())
