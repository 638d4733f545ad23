from __future__ import annotations

import gzip
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import scale
from archives import LIMITS, TREE, entry, link, tar, zipped
from scripted_server import answer, ok, serving

from nativert.errors import Code
from nativert.runtime.image import Images, Unpacked
from nativert.runtime.image_cache import Checksum
from nativert.runtime.image_errors import ImageError
from nativert.runtime.local_os import LocalOs
from nativert.runtime.protocols import DownloadLimits

DOWNLOAD = DownloadLimits(
    max_bytes=4 << 20, connect_timeout_s=5, stall_timeout_s=5, total_timeout_s=20
)
DATA = gzip.compress(tar(*TREE))
SHA256 = hashlib.sha256(DATA).hexdigest()


class Node:
    """The directories of a node around one `Images`."""

    def __init__(self, directory: Path, **options: object) -> None:
        self.cache = directory / "cache"
        self.instance = directory / "instance"
        self.instance.mkdir(parents=True)
        self.source = directory / "app.tar.gz"
        self.source.write_bytes(DATA)
        self.into = self.instance / "image"
        arguments = {"limits": LIMITS, "download": DOWNLOAD, **options}
        self.images = Images(self.cache, LocalOs(), **arguments)  # type: ignore[arg-type]

    def prepare(
        self, uri: str = "", *, checksum: str = "", said: str = "", rootfs: bool = False
    ) -> Unpacked:
        return self.images.prepare(
            uri or f"file://{self.source}",
            checksum=checksum,
            format=said,
            rootfs=rootfs,
            into=self.into,
            progress=None,
        )

    def left(self) -> list[str]:
        cached = os.listdir(self.cache) if self.cache.exists() else []
        return sorted(cached + os.listdir(self.instance))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    descriptors = len(os.listdir("/proc/self/fd"))
    yield Node(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("checksum", ["", f"sha256:{SHA256}", SHA256.upper()])
@pytest.mark.parametrize("said", ["", "tar.gz", "TGZ"])
def test_a_local_archive_is_unpacked_and_not_kept(node: Node, checksum: str, said: str) -> None:
    unpacked = node.prepare(checksum=checksum, said=said)
    assert unpacked.path == node.into
    assert unpacked.digest == f"sha256:{SHA256}"
    assert unpacked.bytes == 810
    assert unpacked.files == 9  # two directories are named only on the way
    assert (node.into / "bin/app").read_text() == "#!/bin/sh\n"
    assert stat.S_IMODE(node.into.stat().st_mode) == 0o755
    assert node.left() == ["image"]


def test_sha1_of_fog05_is_checked_too(node: Node) -> None:
    right = hashlib.sha1(DATA, usedforsecurity=False).hexdigest()
    node.prepare(checksum=right)
    LocalOs().remove_tree(node.into)
    with pytest.raises(ImageError, match=f"wrong checksum: the sha1 is {right}"):
        node.prepare(checksum="0" * 40)
    assert node.left() == []


def test_a_wrong_checksum_is_refused(node: Node) -> None:
    with pytest.raises(ImageError, match=f"app.tar.gz: wrong checksum: the sha256 is {SHA256}"):
        node.prepare(checksum="sha256:" + "0" * 64)
    assert node.left() == []
    with serving(ok(DATA)) as server, pytest.raises(ImageError, match="wrong checksum"):
        node.prepare(server.address + "/app.tar.gz", checksum="0" * 64)
    assert node.left() == []


@pytest.mark.parametrize(
    "text", ["md5:" + "0" * 32, "0" * 32, "sha256:" + "0" * 40, "sha512:" + "0" * 128, "x" * 64]
)
def test_other_checksums_are_refused(text: str) -> None:
    with pytest.raises(ImageError, match="none that is accepted"):
        Checksum.parse(text)


def test_a_zip_over_http(node: Node) -> None:
    data = zipped(("bin/app", b"#!/bin/sh\n", 0o100755))
    with serving(ok(data)) as server:
        node.prepare(server.address + "/app.zip?token=x", said="zip")
    assert os.access(node.into / "bin/app", os.X_OK)
    assert node.left() == ["image"]


def test_a_single_program(node: Node, tmp_path: Path) -> None:
    (tmp_path / "my app").write_bytes(b"\x7fELF" + bytes(100))
    unpacked = node.prepare(f"file://{tmp_path}/my%20app", said="binary")
    assert stat.S_IMODE((unpacked.path / "bin/my app").stat().st_mode) == 0o755
    with serving(ok(b"#!/bin/sh\n")) as server:
        LocalOs().remove_tree(node.into)
        with pytest.raises(ImageError, match="is no name for a program"):
            node.prepare(server.address + "/")
    assert node.left() == []


def test_a_directory_is_used_in_place(node: Node, tmp_path: Path) -> None:
    place = tmp_path / "app"
    place.mkdir()
    assert node.prepare(f"file://{place}/", said="dir") == Unpacked(place, "", 0, 0)
    assert node.left() == []
    with pytest.raises(ImageError, match="cannot be checked"):
        node.prepare(f"file://{place}", checksum=SHA256)
    with pytest.raises(ImageError, match=r"is a directory, the format says 'tar'"):
        node.prepare(f"file://{place}", said="tar")
    (tmp_path / "link").symlink_to(place)
    with pytest.raises(ImageError, match=f"a link to a directory .name {place} itself"):
        node.prepare(f"file://{tmp_path}/link")
    with pytest.raises(ImageError, match="the host itself"):
        node.prepare(f"file://{tmp_path}/{'../' * 20}")


@pytest.mark.parametrize("said", ["tar", "zip", "directory", "binary", "tar.xz"])
def test_a_format_that_lies_is_refused(node: Node, said: str) -> None:
    with pytest.raises(ImageError, match=rf"the image is tar\.gz, the format says {said}"):
        node.prepare(said=said)
    assert node.left() == []


def test_a_format_that_is_not_known_is_refused(node: Node) -> None:
    with pytest.raises(ImageError, match=r"'qcow2' is not known .use one of tar, tar\.gz"):
        node.prepare(said="qcow2")


def test_a_failure_leaves_nothing_and_has_the_image_code(node: Node) -> None:
    node.source.write_bytes(tar(*TREE, link("out", "../../victim")))
    with pytest.raises(ImageError, match=r"app\.tar\.gz: member 'out': the link to") as caught:
        node.prepare()
    assert caught.value.code is Code.IMAGE
    assert node.left() == []


def test_what_is_already_there_is_not_touched(node: Node) -> None:
    node.into.mkdir()
    (node.into / "file").write_text("untouched")
    with pytest.raises(ImageError, match="it is there already"):
        node.prepare()
    assert (node.into / "file").read_text() == "untouched"


def test_a_checksum_makes_a_second_download_needless(node: Node) -> None:
    with serving(ok(DATA)) as server:
        for _ in range(2):
            node.prepare(server.address + "/app.tar.gz", checksum=SHA256)
            LocalOs().remove_tree(node.into)
        # Known by its bytes, not by its address.
        node.prepare("http://127.0.0.1:9/elsewhere", checksum=SHA256)
    assert len(server.requests) == 1
    assert node.left() == ["image", f"sha256-{SHA256}"]


def test_a_damaged_cache_is_noticed_and_fetched_anew(node: Node) -> None:
    with serving(ok(DATA), ok(DATA)) as server:
        node.prepare(server.address + "/a", checksum=SHA256)
        LocalOs().remove_tree(node.into)
        (node.cache / f"sha256-{SHA256}").write_bytes(DATA[:-1])
        node.prepare(server.address + "/a", checksum=SHA256)
    assert len(server.requests) == 2
    assert (node.into / "bin/app").exists()


def test_the_cache_is_bounded_and_forgets_the_least_recently_used(tmp_path: Path) -> None:
    bodies = [tar(entry("f", os.urandom(90_000))) for _ in range(3)]
    sums = [hashlib.sha256(body).hexdigest() for body in bodies]
    node = Node(tmp_path, cache_bytes=250_000)

    def prepare(i: int) -> None:
        node.prepare(server.address + "/a", checksum=sums[i])
        LocalOs().remove_tree(node.into)

    with serving(ok(bodies[0]), ok(bodies[1]), ok(bodies[2])) as server:
        prepare(0)
        prepare(1)
        old = node.cache / f"sha256-{sums[0]}"
        os.utime(old, (1, 1))
        prepare(0)  # a use makes it young again
        os.utime(node.cache / f"sha256-{sums[1]}", (2, 2))
        prepare(2)
    assert node.left() == sorted(f"sha256-{sums[i]}" for i in (0, 2))


def test_a_download_in_progress_is_not_evicted(tmp_path: Path) -> None:
    import fcntl

    node = Node(tmp_path, cache_bytes=0)
    node.cache.mkdir()
    (node.cache / "uri-a.part").write_bytes(b"x")
    (node.cache / "uri-b.part").write_bytes(b"x")
    with (node.cache / "uri-a.lock").open("w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        node.prepare()
    assert node.left() == ["image", "uri-a.lock", "uri-a.part"]


def test_two_at_once_fetch_once(tmp_path: Path) -> None:
    node = Node(tmp_path)
    others = [Node(tmp_path / str(i)) for i in range(4)]
    failures: list[BaseException] = []

    def prepare(other: Node) -> None:
        images = Images(node.cache, LocalOs(), limits=LIMITS, download=DOWNLOAD)
        try:
            images.prepare(
                server.address + "/a",
                checksum=SHA256,
                format="",
                rootfs=False,
                into=other.into,
                progress=None,
            )
        except BaseException as e:
            failures.append(e)

    with serving(ok(DATA)) as server:
        threads = [threading.Thread(target=prepare, args=(other,)) for other in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(scale.LONG_S)
    assert failures == []
    assert all((other.into / "bin/app").exists() for other in others)
    assert os.listdir(node.cache) == [f"sha256-{SHA256}"]


def test_too_little_space_is_refused_before_and_while_unpacking(tmp_path: Path) -> None:
    node = Node(tmp_path, limits=replace(LIMITS, reserve_bytes=1 << 60))
    with pytest.raises(ImageError, match=r"not enough space for \d+ bytes"):
        node.prepare()
    assert node.left() == []


def test_an_error_page_is_no_image(node: Node) -> None:
    page = answer("HTTP/1.1 200 OK\nContent-Type: text/html", b"<html>log in first</html>")
    with serving(page) as server, pytest.raises(ImageError, match="no archive and no program"):
        node.prepare(server.address + "/app.tar.gz")
    assert node.left() == []


def test_an_interrupt_leaves_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nativert.runtime.unpack.unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        node.prepare()
    assert node.left() == []
