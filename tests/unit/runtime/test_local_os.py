from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from nativert.runtime.local_os import LocalOs
from nativert.runtime.protocols import DownloadLimits, Os

FILES: Os = LocalOs()
ME = (os.getuid(), os.getgid())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_make_dir_makes_parents_and_sets_the_mode_in_spite_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        FILES.make_dir(tmp_path / "a" / "b", mode=0o751, owner=ME)
    finally:
        os.umask(before)
    assert mode(tmp_path / "a" / "b") == 0o751
    FILES.make_dir(tmp_path / "a" / "b", mode=0o700)
    assert mode(tmp_path / "a" / "b") == 0o700


def test_make_dir_does_not_take_a_link_or_a_file_for_a_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(OSError, match=name):
            FILES.make_dir(tmp_path / name, mode=0o700)
    assert mode(tmp_path / "real") == 0o755


def test_remove_tree_follows_no_link_and_is_safe_twice(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("")
    (tree / "to-dir").symlink_to(outside)
    (tree / "a" / "to-file").symlink_to(outside / "victim")
    os.mkfifo(tree / "fifo")
    FILES.remove_tree(tree)
    assert not tree.exists()
    FILES.remove_tree(tree)
    FILES.remove_tree(tmp_path / "no" / "such")
    link = tmp_path / "link"
    link.symlink_to(outside)
    FILES.remove_tree(link)
    assert not os.path.lexists(link)
    assert (outside / "victim").read_text() == "untouched"


def test_remove_tree_takes_depth_and_breadth(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 50, dir_fd=fd)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    for i in range(5000):
        (tree / f"f{i}").touch()
    descriptors = len(os.listdir("/proc/self/fd"))
    FILES.remove_tree(tree)
    assert not tree.exists()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_remove_tree_says_what_it_cannot_remove(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot remove self") as caught:
        FILES.remove_tree(Path("/proc/self"))
    assert caught.value.filename == "/proc/self"


def test_write_file_replaces_at_once_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    path.symlink_to(victim)
    FILES.write_file(path, b"new" * 100_000, mode=0o640, owner=ME)
    assert path.read_bytes() == b"new" * 100_000
    assert not path.is_symlink()
    assert mode(path) == 0o640
    assert victim.read_text() == "untouched"
    directory = tmp_path / "directory"
    directory.mkdir()
    with pytest.raises(IsADirectoryError):
        FILES.write_file(directory, b"x")
    assert sorted(os.listdir(tmp_path)) == ["directory", "file", "victim"]


def test_read_file_is_bounded_and_takes_regular_files_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert FILES.read_file(path) == b"12345"
    assert FILES.read_file(path, limit=5) == b"12345"
    with pytest.raises(OSError, match="longer than 4 bytes") as caught:
        FILES.read_file(path, limit=4)
    assert caught.value.errno == errno.EFBIG
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", ".", "missing"):
        with pytest.raises(OSError, match=r"."):
            FILES.read_file(tmp_path / name)


def test_exists_counts_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert FILES.exists(tmp_path / "link")
    assert not FILES.exists(tmp_path / "other")


def test_download_and_free_bytes(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("content")
    limits = DownloadLimits(1000, 1, 1, 1)
    seen = []
    FILES.download(
        f"file://{tmp_path}/source",
        tmp_path / "target",
        limits=limits,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (tmp_path / "target").read_text() == "content"
    assert seen == [(7, 7)]
    assert FILES.free_bytes(tmp_path) > 0
