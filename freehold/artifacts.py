"""What Debian does not have: fetched or built once, on the controller, verified, and kept in the cache.

A role that needs an artifact describes it in its vars/main.yml as `__ROLE_artifact`: name, version, file, sha256, and where it
comes from. The first source that gives the right file is taken: the cache, what FREEHOLD_ARTIFACTS names (a folder, or the
address of a mirror), the vendor's release, a package registry by that registry's own client, a build of the published Go module.
How each is verified: docs/decisions/0018-sums-of-artifacts.md. `python -m freehold.artifacts FOLDER` puts a link to each into a
folder, from which roles copy; of optional ones that no source gives, `skipped.json` there says why.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import yaml

from freehold.lab import ROOT, cache_folder, locked

CONNECT_SECONDS = 20
_CHUNK = 1 << 20
# Copies one file out of a Maven repository, by whatever settings this machine's client has.
_MAVEN_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"


class ArtifactError(Exception):
    """No source gives the artifact. The message names what was tried and the ways to provide it."""


class Artifact(NamedTuple):
    """One file, as a role describes it."""

    name: str
    version: str
    file: str  # its name, in a folder or mirror of the user's too, there also with .xz
    sha256: str
    release: str  # the vendor's own address of it, or of an archive that it is in
    release_member: str = ""  # its path in that archive
    release_sums: str = ""  # address of the vendor's list of sums, for an archive whose sum is not that of `file`
    maven: str = ""  # its coordinates: group:artifact:version:packaging
    go: GoModule | None = None  # what it is built from
    optional: bool = False  # the platform comes up without it


class GoModule(NamedTuple):
    """A published module with a program for amd64, pinned by its sum; those of what it needs are in its own go.sum."""

    module: str
    version: str
    sum: str
    package: str
    drop_replaces: tuple[str, ...] = ()  # modules that it replaces by a folder which is not published with it
    sums: tuple[str, ...] = ()  # lines of go.sum for those


def described() -> dict[str, Artifact]:
    """Return every artifact that a role describes, by name."""
    found = {}
    for path in sorted(ROOT.glob("roles/*/vars/main.yml")):
        entry = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get(f"__{path.parents[1].name}_artifact")
        if entry:
            built = {"go": GoModule(**entry["go"])} if "go" in entry else {}
            artifact = Artifact(**{**entry, "version": str(entry["version"]), **built})
            found[artifact.name] = artifact
    return found


def obtain(name: str) -> Path:
    """Return the verified file of the artifact that a role describes under this name, in the cache.

    Raises:
        ArtifactError: no source gives it.
    """
    return fetch(described()[name])


def fetch(artifact: Artifact) -> Path:
    """Return the verified file of an artifact in the cache, where it is put by the first source that gives it.

    Raises:
        ArtifactError: no source gives it.
    """
    kept = cache_folder() / "artifacts" / artifact.sha256[:16] / artifact.file
    with locked(cache_folder() / "locks" / f"artifact-{artifact.name}"):
        if kept.exists() and _sha256(kept) in (artifact.sha256, _noted(kept)):
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        failures = []
        for source, get in _sources(artifact):
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                path = Path(folder, artifact.file)
                try:
                    get(path)
                except (OSError, ArtifactError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
                    failures.append(f"  {source}: {error}")
                else:
                    # A vendor's binary and a build of the same source differ: what was verified once is known again by this.
                    _note(kept).write_text(_sha256(path) + "\n")
                    return path.replace(kept)
    raise ArtifactError(
        "\n".join(
            [
                f"{artifact.file} is not to be had:",
                *failures,
                "Provide it in one of three ways: set FREEHOLD_ARTIFACTS to a folder that has the file, or to the address",
                f"of a mirror that has it; put it into {kept.parent}; or let this machine reach a source above.",
            ]
        )
    )


def _note(kept: Path) -> Path:
    return kept.with_name(f"{kept.name}.sha256")


def _noted(kept: Path) -> str:
    return _note(kept).read_text().strip() if _note(kept).exists() else ""


def _sources(artifact: Artifact) -> list[tuple[str, Callable[[Path], None]]]:
    sources: list[tuple[str, Callable[[Path], None]]] = []
    if given := os.environ.get("FREEHOLD_ARTIFACTS", ""):
        sources.append((f"FREEHOLD_ARTIFACTS={given}", partial(_from_user, given, artifact)))
    sources.append((artifact.release, partial(_from_vendor, artifact, _download)))
    if artifact.maven:
        sources.append((f"Maven, {artifact.maven}", partial(_from_maven, artifact)))
    if artifact.go:
        sources.append((f"Go, {artifact.go.module}@{artifact.go.version}", partial(_from_go, artifact.go)))
    return sources


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, sha256: str) -> None:
    if not path.exists():
        raise ArtifactError("nothing came")
    if (found := _sha256(path)) != sha256:
        raise ArtifactError(f"the sha256 is {found}, not {sha256}")


def _from_user(given: str, artifact: Artifact, path: Path) -> None:
    """Get the file itself, or compressed, or the vendor's archive with the vendor's list of sums beside it."""

    def get(address: str, to: Path) -> None:
        name = address.rpartition("/")[2]
        if given.startswith(("http://", "https://")):
            _download(f"{given.rstrip('/')}/{name}", to)
        else:
            shutil.copyfile(Path(given, name), to)

    compressed = path.with_name(f"{path.name}.xz")
    failures: list[str] = []
    try:
        get(path.name, path)
    except OSError as error:
        failures.append(str(error))
    else:
        return _verify(path, artifact.sha256)
    try:
        get(compressed.name, compressed)
    except OSError as error:
        failures.append(str(error))
    else:
        with lzma.open(compressed) as packed, path.open("wb") as file:
            shutil.copyfileobj(packed, file, _CHUNK)
        return _verify(path, artifact.sha256)
    if not artifact.release_sums:
        raise ArtifactError("; ".join(failures))
    try:
        return _from_vendor(artifact, get, path)
    except OSError as error:
        raise ArtifactError("; ".join([*failures, str(error)])) from error


def _from_vendor(artifact: Artifact, get: Callable[[str, Path], None], path: Path) -> None:
    """Get what the vendor published: the file, with the sum that the role names, or an archive by the vendor's own list of sums."""
    if not artifact.release_sums:
        get(artifact.release, path)
        return _verify(path, artifact.sha256)
    sums, archive = path.with_name("sums"), path.with_name(artifact.release.rpartition("/")[2])
    get(artifact.release_sums, sums)
    found = re.search(rf"^([0-9a-f]{{64}}) [ *](?:\./)?{re.escape(archive.name)}$", sums.read_text(), re.MULTILINE)
    if not found:
        raise ArtifactError(f"{artifact.release_sums} has no sum of {archive.name}")
    get(artifact.release, archive)
    _verify(archive, found[1])
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as files, path.open("wb") as file:
            if artifact.release_member not in files.namelist():
                raise ArtifactError(f"{archive.name} has no {artifact.release_member}")
            shutil.copyfileobj(files.open(artifact.release_member), file, _CHUNK)
    else:
        with tarfile.open(archive) as files, path.open("wb") as file:
            if artifact.release_member not in files.getnames() or not (
                member := files.extractfile(artifact.release_member)
            ):
                raise ArtifactError(f"{archive.name} has no {artifact.release_member}")
            shutil.copyfileobj(member, file, _CHUNK)
    return None


def _from_go(go: GoModule, path: Path) -> None:
    """Build it. The Go toolchain checks all that it is made from against sums; this checks the module's own."""
    if shutil.which("go") is None:
        raise ArtifactError("go is not installed")
    flags = f"{os.environ.get('GOFLAGS', '')} -mod=readonly".strip()
    environment = {**os.environ, "CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": "amd64", "GOFLAGS": flags}

    def run(folder: Path, *command: str) -> str:
        result = subprocess.run(
            ["go", *command], capture_output=True, text=True, check=False, cwd=folder, env=environment
        )
        if result.returncode:
            raise ArtifactError(f"go {command[0]} failed: " + " ".join((result.stderr or result.stdout).split())[-300:])
        return result.stdout

    module = json.loads(run(path.parent, "mod", "download", "-json", f"{go.module}@{go.version}"))
    if module["Sum"] != go.sum:
        raise ArtifactError(f"the sum of the module is {module['Sum']}, not {go.sum}")
    source = path.with_name("source")
    # Without the modes: what is in Go's own cache is read-only.
    shutil.copytree(module["Dir"], source, copy_function=shutil.copyfile)
    for folder in (source, *(child for child in source.rglob("*") if child.is_dir())):
        folder.chmod(0o755)
    for replaced in go.drop_replaces:
        run(source, "mod", "edit", f"-dropreplace={replaced}")
    with (source / "go.sum").open("a") as file:
        file.writelines(f"{line}\n" for line in go.sums)
    print(f"{path.name}: builds {go.module}@{go.version}, which takes minutes", flush=True)
    run(source, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(path), go.package)


def _download(address: str, path: Path) -> None:
    with urllib.request.urlopen(address, timeout=CONNECT_SECONDS) as answer, path.open("wb") as file:  # noqa: S310
        total, done, told = int(answer.headers.get("Content-Length") or 0), 0, 0
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            if done - told >= 20 * _CHUNK:
                told = done
                print(f"{path.name}: {done >> 20} of {total >> 20} MiB", flush=True)


def _from_maven(artifact: Artifact, path: Path) -> None:
    if shutil.which("mvn") is None:
        raise ArtifactError("mvn is not installed")
    copied = path.parent / "copied"
    command = ["mvn", "--batch-mode", "--quiet", f"-Dmaven.repo.local={path.parent / 'repository'}", _MAVEN_COPY]
    command += [f"-Dartifact={artifact.maven}", f"-DoutputDirectory={copied}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ArtifactError("mvn failed: " + " ".join(result.stdout.split())[-300:])
    for file in copied.iterdir():
        file.replace(path)
    _verify(path, artifact.sha256)


def link(folder: Path) -> list[str]:
    """Put a link to every artifact into a folder, under its name, and return what is there now.

    What is optional and not to be had is left out; `skipped.json` in the folder says by name why.

    Raises:
        ArtifactError: no source gives one that is not optional.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, skipped = [], {}
    for name, artifact in described().items():
        try:
            found = obtain(name)
        except ArtifactError as error:
            if not artifact.optional:
                raise
            print(error, file=sys.stderr, flush=True)
            (folder / artifact.file).unlink(missing_ok=True)
            skipped[name] = f"{artifact.file} is not to be had: set FREEHOLD_ARTIFACTS, see docs/observability.md"
            continue
        temporary = folder / f"{name}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(found)
        temporary.replace(folder / artifact.file)
        names.append(f"{name} {artifact.version}")
    (folder / "skipped.json").write_text(json.dumps(skipped, indent=2) + "\n")
    return names


def main() -> int:
    """Link every artifact into the folder that is named; return the process's exit status."""
    if len(sys.argv) != 2:
        print("usage: python -m freehold.artifacts FOLDER", file=sys.stderr)
        return 2
    try:
        print(", ".join(link(Path(sys.argv[1]))))
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
