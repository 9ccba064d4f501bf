"""Images for deploys: the same program under another digest, and such as do not work."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path


def variant(archive: Path, target: Path, label: str, **settings: object) -> str:
    """Write an OCI archive that differs from another in one label and in settings, such as Cmd; return its digest."""
    with tarfile.open(archive) as old:
        blobs = {member.name: _read(old, member) for member in old.getmembers() if member.isfile()}
    index = json.loads(blobs["index.json"])
    manifest_name = _blob(index["manifests"][0]["digest"])
    manifest = json.loads(blobs.pop(manifest_name))
    config = json.loads(blobs.pop(_blob(manifest["config"]["digest"])))
    config["config"] = {**config.get("config", {}), "Labels": {"freehold.test": label}, **settings}
    manifest["config"] |= _put(blobs, config)
    index["manifests"][0] |= _put(blobs, manifest)
    blobs["index.json"] = json.dumps(index).encode()
    with tarfile.open(target, "w") as new:
        for name, data in blobs.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return str(index["manifests"][0]["digest"])


def _put(blobs: dict[str, bytes], content: object) -> dict[str, str | int]:
    data = json.dumps(content).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blobs[_blob(digest)] = data
    return {"digest": digest, "size": len(data)}


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()
