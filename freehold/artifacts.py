"""What Debian does not have: fetched once, on the controller, verified by its sha256, and kept in the cache.

A role that needs an artifact describes it in its vars/main.yml as `__ROLE_artifact`: name, version, file, sha256, and where it
comes from. The first source that gives the right file is taken: the cache, what FREEHOLD_ARTIFACTS names (a folder, or the
address of a mirror), the vendor's release, a package registry by that registry's own client. `python -m freehold.artifacts FOLDER`
puts a link to each into a folder, from which roles copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
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
    file: str  # its name, in a folder or mirror of the user's too
    sha256: str
    release: str  # the vendor's own address of it
    maven: str = ""  # its coordinates: group:artifact:version:packaging


def described() -> dict[str, Artifact]:
    """Return every artifact that a role describes, by name."""
    found = {}
    for path in sorted(ROOT.glob("roles/*/vars/main.yml")):
        entry = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get(f"__{path.parents[1].name}_artifact")
        if entry:
            artifact = Artifact(**{**entry, "version": str(entry["version"])})
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
        if kept.exists() and _sha256(kept) == artifact.sha256:
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        failures = []
        for source, get in _sources(artifact):
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                path = Path(folder, artifact.file)
                try:
                    get(path)
                    _verify(path, artifact)
                except (OSError, ArtifactError) as error:
                    failures.append(f"  {source}: {error}")
                else:
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


def _sources(artifact: Artifact) -> list[tuple[str, Callable[[Path], None]]]:
    sources: list[tuple[str, Callable[[Path], None]]] = [
        (artifact.release, partial(_download, artifact.release)),
    ]
    if given := os.environ.get("FREEHOLD_ARTIFACTS", ""):
        sources.insert(0, (f"FREEHOLD_ARTIFACTS={given}", partial(_from_user, given)))
    if artifact.maven:
        sources.append((f"Maven, {artifact.maven}", partial(_from_maven, artifact.maven)))
    return sources


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, artifact: Artifact) -> None:
    if not path.exists():
        raise ArtifactError("nothing came")
    if (found := _sha256(path)) != artifact.sha256:
        raise ArtifactError(f"the sha256 is {found}, not {artifact.sha256}")


def _from_user(given: str, path: Path) -> None:
    if given.startswith(("http://", "https://")):
        _download(f"{given.rstrip('/')}/{path.name}", path)
    else:
        shutil.copyfile(Path(given, path.name), path)


def _download(address: str, path: Path) -> None:
    with urllib.request.urlopen(address, timeout=CONNECT_SECONDS) as answer, path.open("wb") as file:  # noqa: S310
        total, done, told = int(answer.headers.get("Content-Length") or 0), 0, 0
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            if done - told >= 20 * _CHUNK:
                told = done
                print(f"{path.name}: {done >> 20} of {total >> 20} MiB", flush=True)


def _from_maven(coordinates: str, path: Path) -> None:
    if shutil.which("mvn") is None:
        raise ArtifactError("mvn is not installed")
    copied = path.parent / "copied"
    command = ["mvn", "--batch-mode", "--quiet", f"-Dmaven.repo.local={path.parent / 'repository'}", _MAVEN_COPY]
    command += [f"-Dartifact={coordinates}", f"-DoutputDirectory={copied}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ArtifactError("mvn failed: " + " ".join(result.stdout.split())[-300:])
    for file in copied.iterdir():
        file.replace(path)


def link(folder: Path) -> list[str]:
    """Put a link to every artifact into a folder, under its name, and return what is there now.

    Raises:
        ArtifactError: no source gives one of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, artifact in described().items():
        temporary = folder / f"{name}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(obtain(name))
        temporary.replace(folder / artifact.file)
        names.append(f"{name} {artifact.version}")
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
