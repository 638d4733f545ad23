"""Mounts beneath a root: flags over whole trees, and no link that leads one elsewhere."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import native_rootfs as mounts
import pytest
from forked import run_forked

from nativert.isolation.syscalls import (
    CLONE_NEWNS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    mount,
)

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True, scope="module")
def native() -> None:
    mounts.load()


KERNELS = [(9, 9), (5, 10)]
# mountinfo escapes some of these and writes the others as they are.
ODD_NAMES = ["plain", "two words", "tab\there", "back\\slash", "日本", "caf\xe9"]


def flags_of(point: Path) -> set[str]:
    """Return the per-mount options of the topmost mount at *point*; see proc(5)."""
    found: set[str] = set()
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        name = re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), fields[4])
        if os.fsdecode(name) == str(point):
            found = set(fields[5].decode().split(","))
    return found


def in_namespace(body: Callable[[], None], kernel: tuple[int, int] = (9, 9)) -> None:
    def with_kernel() -> None:
        mounts.set_kernel(kernel)
        body()

    run_forked(with_kernel, flags=CLONE_NEWNS)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize(
    "odd", ["plain", "two words", "tab\there", "back\\slash", "日本", "caf\xe9"]
)
def test_flags_reach_every_mount_below(tmp_path: Path, kernel: tuple[int, int], odd: str) -> None:
    def body() -> None:
        source, new_root = tmp_path / "source", tmp_path / "root"
        for directory in (source, new_root):
            directory.mkdir()
        mount("t", str(source), "tmpfs")
        below = source / odd
        below.mkdir()
        mount("t", str(below), "tmpfs", MS_NOEXEC)
        (below / "deep").mkdir()
        mount("t", str(below / "deep"), "tmpfs")
        root = os.open(new_root, os.O_PATH)
        mounts.bind(str(source), root, "/shown", MS_RDONLY | MS_NOSUID)
        shown = new_root / "shown"
        for part in ("", odd, f"{odd}/deep"):
            assert {"ro", "nosuid"} <= flags_of(shown / part), part
            with pytest.raises(OSError, match="Read-only"):
                (shown / part / "new").write_text("x")
            # The source stays as it was.
            assert "rw" in flags_of(source / part)
        # What a mount had is kept.
        assert "noexec" in flags_of(shown / odd)
        assert "noexec" not in flags_of(shown)

    in_namespace(body, kernel)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_bind_that_is_not_recursive_leaves_submounts_outside(
    tmp_path: Path, kernel: tuple[int, int]
) -> None:
    def body() -> None:
        source, new_root = tmp_path / "source", tmp_path / "root"
        (source / "below").mkdir(parents=True)
        new_root.mkdir()
        mount("t", str(source / "below"), "tmpfs")
        (source / "below" / "hidden").write_text("x")
        root = os.open(new_root, os.O_PATH)
        mounts.bind(str(source), root, "/shown", MS_RDONLY, recursive=False)
        assert os.listdir(new_root / "shown" / "below") == []
        assert "ro" in flags_of(new_root / "shown")

    in_namespace(body, kernel)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_single_file_is_bound_read_only(tmp_path: Path, kernel: tuple[int, int]) -> None:
    def body() -> None:
        (tmp_path / "file").write_text("content")
        (tmp_path / "root").mkdir()
        root = os.open(tmp_path / "root", os.O_PATH)
        mounts.bind(str(tmp_path / "file"), root, "/a/b/file", MS_RDONLY | MS_NODEV)
        shown = tmp_path / "root/a/b/file"
        assert shown.read_text() == "content"
        with pytest.raises(OSError, match="Read-only"):
            shown.write_text("changed")

    in_namespace(body, kernel)


def links(tmp_path: Path) -> tuple[Path, Path]:
    """Make a root full of links that lead out of it, and the place that they lead to."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "file").write_text("precious")
    (root / "relative").symlink_to("../outside")
    (root / "absolute").symlink_to(outside)
    (root / "up").symlink_to("../../../../../..")
    (root / "magic").symlink_to("/proc/self/root")
    (root / "loop").symlink_to("loop")
    return root, outside


@pytest.mark.parametrize("link", ["relative", "absolute", "up", "magic", "loop"])
def test_no_link_on_the_way_is_followed(tmp_path: Path, link: str) -> None:
    new_root, outside = links(tmp_path)

    def body() -> None:
        root = os.open(new_root, os.O_PATH)
        before = os.listdir("/proc/self/fd")
        for path in (f"/{link}/file", f"/{link}/new/deeper"):
            for directory in (True, False):
                with pytest.raises(OSError) as refused:
                    mounts.make_target(root, path, directory=directory)
                assert refused.value.errno == errno.ELOOP, path
            with pytest.raises(OSError):
                mounts.attach("t", root, path, "tmpfs", 0)
            with pytest.raises(OSError):
                mounts.bind("/etc/hostname", root, path)
        assert os.listdir("/proc/self/fd") == before

    in_namespace(body)
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "precious"


@pytest.mark.parametrize("link", ["relative", "absolute", "magic"])
def test_a_link_as_the_target_itself_is_never_mounted_through(tmp_path: Path, link: str) -> None:
    new_root, outside = links(tmp_path)

    def body() -> None:
        root = os.open(new_root, os.O_PATH)
        with pytest.raises(NotADirectoryError):
            mounts.attach("t", root, f"/{link}", "tmpfs", 0)
        with pytest.raises(NotADirectoryError):
            mounts.bind("/usr", root, f"/{link}", MS_RDONLY)
        assert flags_of(outside) == set()

    in_namespace(body)


@pytest.mark.parametrize("path", ["/../outside/x", "/a/../../outside/x", "/.."])
def test_nothing_is_made_above_the_root(tmp_path: Path, path: str) -> None:
    new_root, outside = links(tmp_path)
    root = os.open(new_root, os.O_PATH)
    with pytest.raises(OSError) as refused:
        os.close(mounts.make_target(root, path, directory=True))
    assert refused.value.errno in (errno.EXDEV, errno.EEXIST)
    os.close(root)
    assert os.listdir(outside) == ["file"]


def test_a_target_that_is_there_is_taken_and_a_missing_one_made(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_PATH)
    (tmp_path / "there").mkdir()
    fd = mounts.make_target(root, "/there/a/b", directory=True)
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "there/a/b"))
    os.close(fd)
    fd = mounts.make_target(root, "/there/a/file", directory=False)
    assert (tmp_path / "there/a/file").is_file()
    os.close(fd)
    # The root itself.
    fd = mounts.open_target(root, "/")
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path))
    os.close(fd)
    os.close(root)


def test_a_missing_target_in_a_read_only_tree_is_named(tmp_path: Path) -> None:
    def body() -> None:
        (tmp_path / "tree").mkdir()
        (tmp_path / "root").mkdir()
        mount(str(tmp_path / "tree"), str(tmp_path / "tree"), flags=MS_BIND | MS_REC)
        root = os.open(tmp_path / "root", os.O_PATH)
        mounts.bind(str(tmp_path / "tree"), root, "/srv", MS_RDONLY)
        with pytest.raises(OSError) as refused:
            mounts.bind("/usr", root, "/srv/site/deep", MS_RDONLY)
        assert refused.value.errno == errno.EROFS
        assert refused.value.filename == "/srv/site/deep"

    in_namespace(body)
