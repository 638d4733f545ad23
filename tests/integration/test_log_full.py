"""A log on a file system without room: the application goes on, and the gap is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from forked import run_forked

from nativert.isolation.syscalls import CLONE_NEWNS, mount
from nativert.launcher.log import Log, Pipe
from nativert.runtime import logs

pytestmark = pytest.mark.root


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    def body() -> None:
        mount("t", str(tmp_path), "tmpfs", data="size=64k")
        directory = tmp_path / "log"
        directory.mkdir()
        log = Log(os.open(directory, os.O_PATH), 1 << 20, 3)
        pipe = Pipe(log, "stdout")
        line = b"x" * 999 + b"\n"
        for _ in range(100):
            os.write(pipe.writer, line)
            assert pipe.drain() is None
        kept = list(logs.read(directory))
        assert 40 < len(kept) < 64
        assert log.lost_bytes == (100 - len(kept)) * 1000
        # Each that is kept is whole; none is glued to the rest of one that was cut.
        assert {line.text for line in kept} == {b"x" * 999}
        mount("t", str(tmp_path), "tmpfs", 32, "size=256k")  # MS_REMOUNT: room again
        os.write(pipe.writer, b"room\n")
        assert pipe.drain() is None
        texts = [line.text for line in logs.read(directory)]
        lost = log.lost_bytes
        assert texts[len(kept) :] == [b"nativert: %d bytes of log dropped" % lost, b"room"]

    run_forked(body, flags=CLONE_NEWNS)


def test_no_inode_left_for_the_next_file(tmp_path: Path) -> None:
    def body() -> None:
        mount("t", str(tmp_path), "tmpfs", data="nr_inodes=3")
        directory = tmp_path / "log"
        directory.mkdir()
        log = Log(os.open(directory, os.O_PATH), 4096, 3)
        pipe = Pipe(log, "stdout")
        for number in range(300):
            os.write(pipe.writer, b"line %d\n" % number)
            assert pipe.drain() is None
        texts = [line.text for line in logs.read(directory)]
        # The first file is kept, and what came after it is counted.
        assert texts[0] == b"line 0"
        assert log.lost_bytes > 0

    run_forked(body, flags=CLONE_NEWNS)
