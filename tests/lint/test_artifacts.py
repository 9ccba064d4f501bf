"""Artifacts come from the first source that has the right file, and from none that has another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from freehold import artifacts
from freehold.artifacts import Artifact, ArtifactError, fetch

CONTENT = b"what was published"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache, which is the one that counts."""
    monkeypatch.setenv("FREEHOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FREEHOLD_ARTIFACTS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Return the folder of a web server of this machine's own, and its address."""
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def artifact(release: str) -> Artifact:
    """Describe the file that these tests are about."""
    return Artifact("thing", "1.0", "thing-1.0.tar.gz", hashlib.sha256(CONTENT).hexdigest(), release)


@pytest.mark.usefixtures("cache")
def test_the_vendors_release_is_fetched_once(site: tuple[Path, str]) -> None:
    """The second time it comes from the cache."""
    folder, address = site
    (folder / "v1.tar.gz").write_bytes(CONTENT)
    wanted = artifact(f"{address}/v1.tar.gz")
    assert fetch(wanted).read_bytes() == CONTENT
    (folder / "v1.tar.gz").unlink()
    assert fetch(wanted).read_bytes() == CONTENT


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", ["folder", "mirror"])
def test_what_the_user_names_comes_before_the_vendor(
    site: tuple[Path, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder or a mirror serves where the vendor cannot be reached."""
    folder, address = site
    (folder / "thing-1.0.tar.gz").write_bytes(CONTENT)
    monkeypatch.setenv("FREEHOLD_ARTIFACTS", str(folder) if kind == "folder" else address)
    assert fetch(artifact(f"{address}/nowhere")).read_bytes() == CONTENT


def test_a_file_with_another_sum_is_never_taken(
    cache: Path, site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from the user, nor from the vendor, nor from the cache; and the message says how to provide the right one."""
    folder, address = site
    for name in ("thing-1.0.tar.gz", "v1.tar.gz"):
        (folder / name).write_bytes(b"something else")
    monkeypatch.setenv("FREEHOLD_ARTIFACTS", str(folder))
    wanted = artifact(f"{address}/v1.tar.gz")
    kept = cache / "artifacts" / wanted.sha256[:16] / wanted.file
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"something else")
    with pytest.raises(ArtifactError) as refused:
        fetch(wanted)
    assert str(refused.value).count("the sha256 is") == 2
    assert "FREEHOLD_ARTIFACTS" in str(refused.value)
    assert str(kept.parent) in str(refused.value)
    (folder / "v1.tar.gz").write_bytes(CONTENT)
    assert fetch(wanted).read_bytes() == CONTENT


def test_every_described_artifact_names_a_release_and_a_sum() -> None:
    """What cannot be verified is not installed."""
    for described in artifacts.described().values():
        assert described.release.startswith("https://")
        assert len(bytes.fromhex(described.sha256)) == hashlib.sha256().digest_size
        assert described.version in described.file
