"""A log on a file system without room: the application goes on, and the gap is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import run_forked
from native_init import LogRelay, driver

from nativert.isolation.syscalls import CLONE_NEWNS, mount
from nativert.runtime import logs

pytestmark = pytest.mark.root


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    driver("drive_log")  # compiled out here: what a child compiles goes with it

    def body() -> None:
        mount("t", str(tmp_path), "tmpfs", data="size=64k")
        directory = tmp_path / "log"
        directory.mkdir()
        with LogRelay(directory) as relay:
            for _ in range(100):
                relay.say(b"x" * 999 + b"\n")
            kept = list(logs.read(directory))
            assert 40 < len(kept) < 64
            assert relay.lost_bytes == (100 - len(kept)) * 1000
            # Each that is kept is whole; none is glued to the rest of one that was cut.
            assert {line.text for line in kept} == {b"x" * 999}
            mount("t", str(tmp_path), "tmpfs", 32, "size=256k")  # MS_REMOUNT: room again
            relay.say(b"room\n")
            texts = [line.text for line in logs.read(directory)]
            note = b"nativert: %d bytes of log dropped" % relay.lost_bytes
            assert texts[len(kept) :] == [note, b"room"]

    run_forked(body, flags=CLONE_NEWNS)


def test_no_inode_left_for_the_next_file(tmp_path: Path) -> None:
    driver("drive_log")

    def body() -> None:
        mount("t", str(tmp_path), "tmpfs", data="nr_inodes=3")
        directory = tmp_path / "log"
        directory.mkdir()
        with LogRelay(directory, max_bytes=4096) as relay:
            for number in range(300):
                relay.say(b"line %d\n" % number)
            texts = [line.text for line in logs.read(directory)]
            # The first file is kept, and what came after it is counted.
            assert texts[0] == b"line 0"
            assert relay.lost_bytes > 0

    run_forked(body, flags=CLONE_NEWNS)
