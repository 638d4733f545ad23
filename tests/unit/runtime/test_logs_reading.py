"""Reading an application's log back: all of it, in order, while it is written and rotated."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_init import LogRelay

from nativert.runtime import logs

PAGE = 4096
HEAD = b"2026-11-22T08:00:00.000000000Z"


class Writer:
    """What init does with a log."""

    def __init__(self, directory: Path, *, files: int = 3, max_bytes: int = PAGE) -> None:
        self.log = LogRelay(directory, max_bytes=max_bytes, files=files)
        self.count = itertools.count()

    def write(self, lines: int) -> None:
        for _ in range(lines):
            self.log.write(b"%d\n" % next(self.count))

    def close(self) -> None:
        self.log.close()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    one = Writer(tmp_path)
    yield one
    one.close()


def numbers(lines: Iterator[logs.LogLine]) -> list[int]:
    return [int(line.text) for line in lines]


def test_a_record_is_time_stream_and_text() -> None:
    line = logs.parse(HEAD + b" stderr P some text ")
    assert line is not None
    assert (line.time, line.stream, line.text) == (HEAD.decode(), "stderr", b"some text ")
    assert line.partial
    empty = logs.parse(HEAD + b" stdout F ")
    assert empty is not None
    assert empty.text == b""


@pytest.mark.parametrize(
    "record", [b"", b"x", HEAD, HEAD + b" stdout", HEAD + b" stdin F x", HEAD + b" stdout Q x"]
)
def test_what_is_no_record_is_passed_over(record: bytes) -> None:
    assert logs.parse(record) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_none(record: bytes) -> None:
    line = logs.parse(record)
    assert line is None or line.stream in ("stdout", "stderr")


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert list(logs.read(tmp_path)) == []
    assert list(logs.read(tmp_path / "absent")) == []
    assert list(logs.read(tmp_path, tail=5)) == []


def test_rotated_files_are_read_oldest_first(tmp_path: Path) -> None:
    writer = Writer(tmp_path, files=12)
    writer.write(1000)
    assert (tmp_path / "10").exists()
    found = numbers(logs.read(tmp_path))
    assert found == list(range(found[0], 1000))
    assert numbers(logs.read(tmp_path, tail=5)) == [995, 996, 997, 998, 999]
    assert numbers(logs.read(tmp_path, tail=300)) == list(range(700, 1000))
    assert numbers(logs.read(tmp_path, tail=0)) == []
    writer.close()


def test_a_record_in_the_making_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "current").write_bytes(HEAD + b" stdout F whole\n" + HEAD + b" stdout F ha")
    assert [line.text for line in logs.read(tmp_path)] == [b"whole"]


def test_a_record_that_was_cut_does_not_swallow_the_next_file(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(HEAD + b" stdout F one\n" + HEAD + b" std")
    (tmp_path / "current").write_bytes(HEAD + b" stdout F two\n")
    assert [line.text for line in logs.read(tmp_path)] == [b"one", b"two"]


def test_other_names_in_the_directory_are_not_read(tmp_path: Path, writer: Writer) -> None:
    writer.write(3)
    (tmp_path / "note").write_bytes(HEAD + b" stdout F not ours\n")
    assert numbers(logs.read(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize("rounds", [1, 2, 3, 7])
def test_rotations_while_reading_lose_nothing(tmp_path: Path, rounds: int) -> None:
    """At any point of reading the files move on by as much as is still kept."""
    writer = Writer(tmp_path, files=40)
    writer.write(1)
    chain = logs._Chain(tmp_path)
    seen = numbers(chain.read())
    for _ in range(5):
        for _ in range(rounds):
            writer.write(100)
        reading = chain.read()
        seen.append(int(next(reading).text))
        writer.write(200)
        seen += numbers(reading)
    seen += numbers(chain.read())
    assert seen == list(range(5 * (100 * rounds + 200) + 1))
    chain.close()
    writer.close()


def test_what_was_rotated_out_is_skipped_and_the_rest_is_whole(tmp_path: Path) -> None:
    writer = Writer(tmp_path, files=2)
    writer.write(10)
    chain = logs._Chain(tmp_path)
    seen = numbers(chain.read())
    writer.write(1000)
    later = numbers(chain.read())
    # What our descriptor held is read to its end, and what is there now without a gap.
    assert seen == list(range(10))
    gaps = [b for a, b in itertools.pairwise(later) if b != a + 1]
    assert len(gaps) <= 1
    assert later[0] == 10
    assert later[-1] == 1009
    chain.close()
    writer.close()


def test_following_shows_what_is_there_and_what_comes_until_the_end(
    tmp_path: Path, writer: Writer
) -> None:
    writer.write(5)
    ended = threading.Event()

    def write() -> None:
        writer.write(5)
        ended.set()

    lines = logs.follow(tmp_path, tail=2, running=lambda: not ended.is_set())
    assert [int(next(lines).text), int(next(lines).text)] == [3, 4]
    thread = threading.Thread(target=write)
    thread.start()
    assert numbers(lines) == [5, 6, 7, 8, 9]
    thread.join()


@pytest.mark.parametrize("tail", [None, 0, 10])
def test_following_a_flood_keeps_up_with_its_rotations(tmp_path: Path, tail: int | None) -> None:
    writer = Writer(tmp_path, files=60, max_bytes=PAGE)
    writer.write(20)
    ended = threading.Event()

    def write() -> None:
        for _ in range(40):
            writer.write(100)
        ended.set()

    lines = logs.follow(tmp_path, tail=tail, running=lambda: not ended.is_set())
    thread = threading.Thread(target=write)
    first = 20 - (20 if tail is None else tail)
    if tail != 0:
        assert int(next(lines).text) == first
        first += 1
    thread.start()
    found = numbers(lines)
    thread.join()
    assert found[-1] == 4019
    assert found == list(range(found[0], 4020))
    # With a tail of nothing, what is written before the first look may be passed over.
    assert tail == 0 or found[0] == first
    writer.close()


def test_following_leaves_no_descriptor(tmp_path: Path, writer: Writer) -> None:
    writer.write(3)
    before = os.listdir("/proc/self/fd")
    lines = logs.follow(tmp_path, tail=None, running=lambda: True)
    next(lines)
    lines.close()  # type: ignore[attr-defined]
    list(logs.read(tmp_path))
    part = logs.read(tmp_path)
    next(part)
    part.close()  # type: ignore[attr-defined]
    assert os.listdir("/proc/self/fd") == before


def test_the_end_is_asked_before_the_last_read(tmp_path: Path, writer: Writer) -> None:
    """What is written just before the end is shown, though the answer was no already."""
    asked = []

    def running() -> bool:
        asked.append(True)
        if len(asked) == 2:
            writer.write(1)
            return False
        return True

    assert numbers(logs.follow(tmp_path, tail=None, running=running)) == [0]
