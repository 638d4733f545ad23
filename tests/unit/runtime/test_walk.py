"""Walking what an application may change at any moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nativert.runtime.local_os import LocalOs
from nativert.runtime.walk import walk


def names(top: Path) -> list[str]:
    return [here for here, _ in walk(top)]


def test_every_directory_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b/x", "a/y/z", "c"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("a")
    assert names(tmp_path) == ["", "a", "a/y", "a/y/z", "b", "b/x", "c"]


def test_what_is_no_directory_has_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link", "nothing"):
        assert names(tmp_path / name) == []


@pytest.mark.parametrize(
    "instead",
    [
        lambda path: path.symlink_to("/"),
        lambda path: path.symlink_to("../a"),
        os.mkfifo,
        lambda path: path.write_text("x"),
        lambda _: None,
    ],
)
def test_what_takes_the_place_of_a_directory_is_not_opened(
    tmp_path: Path, instead: Callable[[Path], object]
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    seen = []
    for here, _ in walk(tmp_path):
        seen.append(here)
        if here == "a":
            # Listed already, and its turn is the next.
            (tmp_path / "b").rmdir()
            instead(tmp_path / "b")
    assert seen == ["", "a", "c"]


def test_depth_costs_neither_descriptors_nor_frames(tmp_path: Path) -> None:
    depth, top = 3000, tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 20, dir_fd=fd)
        inner = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    try:
        open_ = [len(os.listdir("/proc/self/fd")) for _ in walk(top)]
    finally:
        # pytest's own removal does not come so deep.
        LocalOs().remove_tree(top)
    assert len(open_) == depth + 1
    assert max(open_) <= before + 3


def test_the_descriptors_are_closed_when_it_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    walking = walk(tmp_path)
    next(walking)
    next(walking)
    walking.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before
