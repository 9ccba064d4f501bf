"""Artifacts come from the first source that has the right file, and from none that has another."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from freehold import artifacts
from freehold.artifacts import Artifact, ArtifactError, GoModule, fetch

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


@pytest.mark.usefixtures("cache")
def test_the_user_may_give_it_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NAME.xz; the sum is that of what is in it."""
    (tmp_path / "thing-1.0.tar.gz.xz").write_bytes(lzma.compress(CONTENT))
    monkeypatch.setenv("FREEHOLD_ARTIFACTS", str(tmp_path))
    assert fetch(artifact("file:///nowhere")).read_bytes() == CONTENT
    (tmp_path / "thing-1.0.tar.gz.xz").write_bytes(lzma.compress(b"something else"))
    fetch(artifact("file:///nowhere")).unlink()
    with pytest.raises(ArtifactError, match="the sha256"):
        fetch(artifact("file:///nowhere"))


BUILT_ELSEWHERE = b"what the vendor built of the same source"


def published(folder: Path, address: str, kind: str) -> Artifact:
    """Put an archive and the vendor's list of sums into the folder, and describe what is in it."""
    name = f"vendors-1.0.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("vendors/thing", BUILT_ELSEWHERE)
    else:
        member = tarfile.TarInfo("vendors/thing")
        member.size = len(BUILT_ELSEWHERE)
        with tarfile.open(folder / name, "w:gz") as packed:
            packed.addfile(member, io.BytesIO(BUILT_ELSEWHERE))
    found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "sums.txt").write_text(f"{'0' * 64} *other-1.0.{kind}\n{found} *{name}\n")
    described = artifact(f"{address}/{name}")
    return described._replace(
        file="thing-1.0", release_member="vendors/thing", release_sums=f"{address}/sums.txt", optional=True
    )


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_vendors_archive_is_taken_by_the_vendors_own_sums(site: tuple[Path, str], kind: str) -> None:
    """Where its build is not that of the sum in the role; and then it is known again."""
    folder, address = site
    wanted = published(folder, address, kind)
    assert fetch(wanted).read_bytes() == BUILT_ELSEWHERE
    shutil.rmtree(folder)
    assert fetch(wanted).read_bytes() == BUILT_ELSEWHERE


@pytest.mark.usefixtures("cache")
def test_a_user_without_a_network_may_give_what_the_vendor_published(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archive and list of sums, as they are called there."""
    folder, address = site
    wanted = published(folder, "https://vendor.invalid", "tar.gz")
    monkeypatch.setenv("FREEHOLD_ARTIFACTS", address)
    assert fetch(wanted).read_bytes() == BUILT_ELSEWHERE


@pytest.mark.usefixtures("cache")
def test_an_archive_with_another_sum_than_the_vendor_lists_is_refused(site: tuple[Path, str]) -> None:
    """Also one that the list does not have, and one that lacks the file."""
    folder, address = site
    wanted = published(folder, address, "tar.gz")
    with (folder / "vendors-1.0.tar.gz").open("ab") as archive:
        archive.write(b"more")
    with pytest.raises(ArtifactError, match="the sha256 is"):
        fetch(wanted)
    (folder / "sums.txt").write_text(f"{'0' * 64} *other\n")
    with pytest.raises(ArtifactError, match="has no sum of vendors"):
        fetch(wanted)
    wanted = published(folder, address, "zip")._replace(release_member="vendors/other")
    with pytest.raises(ArtifactError, match="has no vendors/other"):
        fetch(wanted)


@pytest.mark.usefixtures("cache")
def test_what_was_kept_and_has_changed_since_is_fetched_anew(site: tuple[Path, str]) -> None:
    """Whatever sum it was taken by."""
    folder, address = site
    wanted = published(folder, address, "zip")
    fetch(wanted).write_bytes(b"spoilt")
    assert fetch(wanted).read_bytes() == BUILT_ELSEWHERE


@pytest.mark.usefixtures("cache")
def test_a_published_module_is_built_and_its_sum_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the Go toolchain, from a proxy of this test's own; a replacement by a folder that is not published is dropped."""
    proxy = tmp_path / "proxy/example.org/thing/@v"
    proxy.mkdir(parents=True)
    files = {
        "go.mod": "module example.org/thing\n\ngo 1.21\n\nreplace example.org/other => ./other\n",
        "cmd/thing/main.go": 'package main\n\nfunc main() { println("built") }\n',
    }
    (proxy / "v1.0.0.mod").write_text(files["go.mod"])
    (proxy / "v1.0.0.info").write_text('{"Version": "v1.0.0"}')
    with zipfile.ZipFile(proxy / "v1.0.0.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"example.org/thing@v1.0.0/{name}", content)
    monkeypatch.setenv("GOPROXY", f"file://{tmp_path}/proxy")
    monkeypatch.setenv("GONOSUMDB", "example.org")
    monkeypatch.setenv("GOMODCACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("GOFLAGS", "-modcacherw")
    go = GoModule("example.org/thing", "v1.0.0", "h1:another", "./cmd/thing", ("example.org/other",))
    wanted = artifact("file:///nowhere")._replace(file="thing-1.0", go=go)
    if shutil.which("go") is None:
        with pytest.raises(ArtifactError, match="go is not installed"):
            fetch(wanted)
        return
    with pytest.raises(ArtifactError, match=r"the sum of the module is h1:") as refused:
        fetch(wanted)
    found = str(refused.value).partition("the module is ")[2].partition(",")[0]
    built = fetch(wanted._replace(go=go._replace(sum=found)))
    built.chmod(0o755)
    said = subprocess.run([built], capture_output=True, text=True, check=True)
    assert said.stderr == "built\n"


def test_what_is_optional_and_not_to_be_had_is_left_out(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reason for `make status`; what is not optional stops everything."""
    assert not cache.exists()
    wanted = artifact("file:///nowhere")
    monkeypatch.setattr(artifacts, "described", lambda: {"thing": wanted._replace(optional=True)})
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / wanted.file).symlink_to("an-older-one")
    assert artifacts.link(folder) == []
    assert not (folder / wanted.file).is_symlink()
    assert "FREEHOLD_ARTIFACTS" in json.loads((folder / "skipped.json").read_text())["thing"]
    monkeypatch.setattr(artifacts, "described", lambda: {"thing": wanted})
    with pytest.raises(ArtifactError):
        artifacts.link(folder)


def test_every_described_artifact_names_a_release_and_a_sum() -> None:
    """What cannot be verified is not installed."""
    for described in artifacts.described().values():
        assert described.release.startswith("https://")
        assert len(bytes.fromhex(described.sha256)) == hashlib.sha256().digest_size
        assert described.version in described.file
