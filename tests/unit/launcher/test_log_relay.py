"""The log relay: format, caps, rotation, and what becomes of a flood or a full disk."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nativert.launcher import log as logs
from nativert.launcher.log import Log, Pipe
from nativert.runtime import logs as reading

RECORD = re.compile(
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) ([^\n]*)\n", re.DOTALL
)
PAGE = 4096


class Relay:
    """A log in *directory* and the pipe of one stream into it."""

    def __init__(self, directory: Path, *, max_bytes: int = 1 << 20, files: int = 3) -> None:
        self.directory = directory
        self.fd = os.open(directory, os.O_PATH)
        self.log = Log(self.fd, max_bytes, files)
        self.pipe = Pipe(self.log, "stdout")

    def say(self, data: bytes) -> None:
        """Pass *data* through the pipe, a part at a time as it fits."""
        for at in range(0, len(data), 60000):
            os.write(self.pipe.writer, data[at : at + 60000])
            assert self.pipe.drain() is None

    def end(self) -> None:
        self.pipe.close_writer()
        assert self.pipe.drain() is False

    def records(self) -> list[tuple[bytes, bytes, bytes]]:
        stored = b"".join(
            (self.directory / name).read_bytes() for name in reading._Chain(self.directory)._names()
        )
        found = [match.groups() for match in RECORD.finditer(stored)]
        assert sum(len(m.group()) for m in RECORD.finditer(stored)) == len(stored), stored[:300]
        return found

    def text(self) -> bytes:
        return b"".join(
            text + (b"\n" if tag == b"F" else b"") for _stream, tag, text in self.records()
        )

    def close(self) -> None:
        self.pipe.close()
        if self.log._fd >= 0:
            os.close(self.log._fd)
        os.close(self.fd)


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    one = Relay(tmp_path)
    yield one
    one.close()


def test_each_line_is_one_record_of_cri(relay: Relay) -> None:
    relay.say(b"one\n\ntwo three\n")
    assert relay.records() == [
        (b"stdout", b"F", b"one"),
        (b"stdout", b"F", b""),
        (b"stdout", b"F", b"two three"),
    ]
    assert [(line.stream, line.text, line.partial) for line in reading.read(relay.directory)] == [
        ("stdout", b"one", False),
        ("stdout", b"", False),
        ("stdout", b"two three", False),
    ]


def test_a_line_in_pieces_is_stored_when_it_ends(relay: Relay) -> None:
    relay.say(b"half")
    assert relay.records() == []
    assert relay.pipe.pending
    relay.say(b" and half\nrest")
    assert relay.records() == [(b"stdout", b"F", b"half and half")]
    relay.end()
    assert relay.records()[1:] == [(b"stdout", b"P", b"rest")]


def test_a_prompt_is_stored_as_a_piece_and_its_answer_follows(relay: Relay) -> None:
    relay.say(b"name? ")
    relay.pipe.flush()
    relay.say(b"given\n")
    assert relay.records() == [(b"stdout", b"P", b"name? "), (b"stdout", b"F", b"given")]
    assert [line.partial for line in reading.read(relay.directory)] == [True, False]


def test_a_line_without_end_is_stored_in_bounded_pieces(relay: Relay) -> None:
    relay.say(b"x" * 200_000)
    relay.say(b"\n")
    assert relay.text() == b"x" * 200_000 + b"\n"
    assert max(len(text) for _, _, text in relay.records()) <= logs._CHUNK + logs._MAX_LINE


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300) | st.just(b"\n"), max_size=20))
def test_any_bytes_come_back_as_they_were(pieces: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        relay = Relay(Path(directory))
        for piece in filter(None, pieces):
            relay.say(piece)
        relay.end()
        assert relay.text() == b"".join(pieces)
        relay.close()


def sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


@pytest.mark.parametrize("files", [1, 2, 3, 5])
def test_files_and_their_sizes_stay_under_the_cap(tmp_path: Path, files: int) -> None:
    relay = Relay(tmp_path, max_bytes=PAGE, files=files)
    for number in range(2000):
        relay.say(b"line %d\n" % number)
    assert set(sizes(tmp_path)) == {"current", *(str(i) for i in range(1, files))}
    assert max(sizes(tmp_path).values()) <= PAGE
    kept = [int(text.split()[1]) for _, _, text in relay.records()]
    # What is kept is the end, without a gap over the rotations.
    assert kept == list(range(kept[0], 2000))
    assert len(kept) > 50 * (files - 1)
    relay.close()


def test_many_lines_at_once_are_split_over_files_at_line_ends(tmp_path: Path) -> None:
    relay = Relay(tmp_path, max_bytes=PAGE, files=100)
    relay.say(b"".join(b"%d\n" % number for number in range(2000)))
    assert max(sizes(tmp_path).values()) <= PAGE
    assert [int(text) for _, _, text in relay.records()] == list(range(2000))
    relay.close()


def test_a_flood_of_empty_lines_stays_under_the_cap_too(tmp_path: Path) -> None:
    # Each byte becomes a record of 45 bytes.
    relay = Relay(tmp_path, max_bytes=PAGE, files=2)
    relay.say(b"\n" * 60000)
    assert max(sizes(tmp_path).values()) <= PAGE
    relay.close()


def test_a_line_larger_than_a_file_gets_one_of_its_own(tmp_path: Path) -> None:
    relay = Relay(tmp_path, max_bytes=PAGE, files=3)
    relay.say(b"before\n" + b"y" * 9000 + b"\nafter\n")
    assert [text[:6] for _, _, text in relay.records()] == [b"before", b"yyyyyy", b"after"]
    assert sizes(tmp_path)["1"] > 9000
    relay.close()


def test_a_log_goes_on_where_an_earlier_init_left_it(tmp_path: Path) -> None:
    first = Relay(tmp_path, max_bytes=PAGE)
    first.say(b"first\n" * 60)
    first.close()
    second = Relay(tmp_path, max_bytes=PAGE)
    second.say(b"second\n" * 60)
    assert set(sizes(tmp_path)) == {"current", "1"}
    assert len(second.records()) == 120
    second.close()


class Clock:
    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


def test_what_comes_faster_than_the_rate_is_dropped_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(logs.time, "monotonic", clock)
    monkeypatch.setattr(logs, "_BURST", 1 << 20)
    relay = Relay(tmp_path, max_bytes=8 << 20)
    line = b"z" * 99 + b"\n"
    # All in one instant: the burst is free, the rest is dropped.
    for _ in range(40):
        relay.say(line * 600)
    assert 0 < relay.log.lost_bytes < 40 * 60000
    kept = len(relay.text())
    assert kept + relay.log.lost_bytes == 40 * 60000
    assert kept <= 1 << 20
    clock.now += 2.0
    os.write(relay.pipe.writer, b"calm\ncalm\n")
    assert relay.pipe.relay()
    notes = [(stream, text) for stream, _, text in relay.records() if text.startswith(b"nativert")]
    dropped = relay.log.lost_bytes
    assert notes == [(b"stderr", b"nativert: %d bytes of log dropped" % dropped)]
    assert relay.text().endswith(b"dropped\ncalm\ncalm\n")
    relay.close()


def test_an_hour_of_silence_saves_up_no_more_than_one_burst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(logs.time, "monotonic", clock)
    monkeypatch.setattr(logs, "_BURST", 125_000)
    relay = Relay(tmp_path)
    clock.now += 3600
    relay.pipe.relay()
    for _ in range(4):
        relay.say(b"a" * 49_999 + b"\n")
    assert relay.log.lost_bytes == 2 * 50_000
    relay.close()


def test_small_writes_do_not_cost_a_wake_up_each(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(logs.time, "monotonic", clock)
    monkeypatch.setattr(logs.time, "sleep", sleep)
    for _ in range(400):
        os.write(relay.pipe.writer, b".\n")
        assert relay.pipe.relay()
    # After a short burst the loop waits for more to gather, a few milliseconds at a time.
    assert len(waits) >= 200
    assert max(waits) < 0.01
    assert len(relay.records()) == 400


class FullDisk:
    """os.write that takes no more than what is left, as a full file system does."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = REAL_WRITE(fd, bytes(data)[: self.room])
        self.room -= written
        return written


REAL_WRITE = os.write


def test_a_record_that_a_full_disk_cuts_is_taken_back(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.say(b"kept\n")
    os.write(relay.pipe.writer, b"cut short\n")
    with monkeypatch.context() as patch:
        patch.setattr(logs.os, "write", FullDisk(20))
        assert relay.pipe.relay()
    assert relay.log.lost_bytes == len(b"cut short\n")
    relay.say(b"room again\n")
    assert [text for _, _, text in relay.records()] == [
        b"kept",
        b"nativert: 10 bytes of log dropped",
        b"room again",
    ]


def test_the_gap_is_told_after_the_disk_has_room_and_not_before(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        os.write(relay.pipe.writer, b"lost %d\n" % number)
        with monkeypatch.context() as patch:
            patch.setattr(logs.os, "write", FullDisk(0))
            assert relay.pipe.relay()
    assert relay.log.lost_bytes == 3 * 7
    relay.say(b"back\n")
    assert [text for _, _, text in relay.records()] == [
        b"nativert: 21 bytes of log dropped",
        b"back",
    ]


def test_a_directory_that_went_away_does_not_stop_the_relay(relay: Relay) -> None:
    os.rmdir(relay.directory)
    relay.say(b"nowhere\n")
    assert relay.log.lost_bytes == 8


def test_a_link_in_place_of_the_log_is_not_followed(relay: Relay, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "current").symlink_to(target)
    relay.say(b"redirected\n")
    assert target.read_bytes() == b"precious"
    assert relay.log.lost_bytes == 11


def test_the_end_does_not_wait_for_a_writer_outside(relay: Relay) -> None:
    elsewhere = os.dup(relay.pipe.writer)
    os.write(elsewhere, b"last words\nand a")
    relay.pipe.finish()
    assert relay.text() == b"last words\nand a"
    os.close(elsewhere)


def test_the_end_takes_all_that_a_pipe_can_hold(relay: Relay) -> None:
    fcntl.fcntl(relay.pipe.writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.set_blocking(relay.pipe.writer, False)
    written = 0
    for _ in itertools.count():
        try:
            written += os.write(relay.pipe.writer, b"w" * 99 + b"\n")
        except BlockingIOError:
            break
    assert written > 500_000
    relay.pipe.finish()
    assert len(relay.text()) == written
