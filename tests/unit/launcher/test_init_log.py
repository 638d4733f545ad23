"""The log relay of init: format, caps, rotation, and what becomes of a flood or a full disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_init import LogRelay

from nativert.runtime import logs as reading

RECORD = re.compile(
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) ([^\n]*)\n", re.DOTALL
)
PAGE = 4096
# pipe.c, init.h
BURST = 16 << 20
LONGEST = (64 << 10) + (16 << 10)
NS = 1_000_000_000


def records(directory: Path) -> list[tuple[bytes, bytes, bytes]]:
    """Return stream, tag and text of all that is stored; every byte must belong to a record."""
    stored = b"".join(
        (directory / name).read_bytes() for name in reading._Chain(directory)._names()
    )
    matches = list(RECORD.finditer(stored))
    assert sum(len(m.group()) for m in matches) == len(stored), stored[:300]
    return [match.groups() for match in matches]


def text(directory: Path) -> bytes:
    return b"".join(
        text + (b"\n" if tag == b"F" else b"") for _stream, tag, text in records(directory)
    )


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[LogRelay]:
    with LogRelay(tmp_path) as one:
        yield one


def test_each_line_is_one_record_of_cri(relay: LogRelay) -> None:
    relay.say(b"one\n\ntwo three\n")
    assert records(relay.directory) == [
        (b"stdout", b"F", b"one"),
        (b"stdout", b"F", b""),
        (b"stdout", b"F", b"two three"),
    ]
    assert [(line.stream, line.text, line.partial) for line in reading.read(relay.directory)] == [
        ("stdout", b"one", False),
        ("stdout", b"", False),
        ("stdout", b"two three", False),
    ]


def test_a_line_in_pieces_is_stored_when_it_ends(relay: LogRelay) -> None:
    relay.say(b"half")
    assert records(relay.directory) == []
    assert relay.state.rest
    relay.say(b" and half\nrest")
    assert records(relay.directory) == [(b"stdout", b"F", b"half and half")]
    relay.do("hang-up")
    assert relay.do("drain") == 0
    assert records(relay.directory)[1:] == [(b"stdout", b"P", b"rest")]


def test_a_prompt_is_stored_as_a_piece_and_its_answer_follows(relay: LogRelay) -> None:
    relay.say(b"name? ")
    relay.do("flush")
    relay.say(b"given\n")
    assert records(relay.directory) == [(b"stdout", b"P", b"name? "), (b"stdout", b"F", b"given")]
    assert [line.partial for line in reading.read(relay.directory)] == [True, False]


def test_a_line_without_end_is_stored_in_bounded_pieces(relay: LogRelay) -> None:
    relay.say(b"x" * 200_000)
    relay.say(b"\n")
    assert text(relay.directory) == b"x" * 200_000 + b"\n"
    assert max(len(text) for _, _, text in records(relay.directory)) <= LONGEST


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300) | st.just(b"\n"), max_size=20))
def test_any_bytes_come_back_as_they_were(pieces: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name, LogRelay(Path(name)) as relay:
        for piece in filter(None, pieces):
            relay.say(piece)
        relay.do("hang-up")
        assert relay.do("drain") == 0
        assert text(Path(name)) == b"".join(pieces)


def sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


@pytest.mark.parametrize("files", [1, 2, 3, 5])
def test_files_and_their_sizes_stay_under_the_cap(tmp_path: Path, files: int) -> None:
    with LogRelay(tmp_path, max_bytes=PAGE, files=files) as relay:
        for number in range(2000):
            relay.say(b"line %d\n" % number)
        assert set(sizes(tmp_path)) == {"current", *(str(i) for i in range(1, files))}
        assert max(sizes(tmp_path).values()) <= PAGE
        kept = [int(text.split()[1]) for _, _, text in records(relay.directory)]
        # What is kept is the end, without a gap over the rotations.
        assert kept == list(range(kept[0], 2000))
        assert len(kept) > 50 * (files - 1)


def test_many_lines_at_once_are_split_over_files_at_line_ends(tmp_path: Path) -> None:
    with LogRelay(tmp_path, max_bytes=PAGE, files=100) as relay:
        relay.say(b"".join(b"%d\n" % number for number in range(2000)))
        assert max(sizes(tmp_path).values()) <= PAGE
        assert [int(text) for _, _, text in records(relay.directory)] == list(range(2000))


def test_a_flood_of_empty_lines_stays_under_the_cap_too(tmp_path: Path) -> None:
    # Each byte becomes a record of 45 bytes.
    with LogRelay(tmp_path, max_bytes=PAGE, files=2) as relay:
        relay.say(b"\n" * 60000)
        assert max(sizes(tmp_path).values()) <= PAGE


def test_a_line_larger_than_a_file_gets_one_of_its_own(tmp_path: Path) -> None:
    with LogRelay(tmp_path, max_bytes=PAGE, files=3) as relay:
        relay.say(b"before\n" + b"y" * 9000 + b"\nafter\n")
        assert [text[:6] for _, _, text in records(relay.directory)] == [
            b"before",
            b"yyyyyy",
            b"after",
        ]
        assert sizes(tmp_path)["1"] > 9000


def test_a_log_goes_on_where_an_earlier_init_left_it(tmp_path: Path) -> None:
    with LogRelay(tmp_path, max_bytes=PAGE) as first:
        first.say(b"first\n" * 60)
    with LogRelay(tmp_path, max_bytes=PAGE) as second:
        second.say(b"second\n" * 60)
        assert set(sizes(tmp_path)) == {"current", "1"}
        assert len(records(tmp_path)) == 120


def test_what_comes_faster_than_the_rate_is_dropped_and_told_once(tmp_path: Path) -> None:
    with LogRelay(tmp_path, max_bytes=64 << 20) as relay:
        line = b"z" * 99 + b"\n"
        said = 0
        # All in one instant: the burst is free, the rest is dropped.
        for _ in range(5):
            relay.do("repeat", 39600, line.hex())
            said += 3_960_000
        assert 0 < relay.lost_bytes < said
        kept = len(text(tmp_path))
        assert kept + relay.lost_bytes == said
        assert BURST * 0.6 < kept <= BURST
        relay.do("clock", 2 * NS)
        relay.do("put", b"calm\ncalm\n".hex())
        assert relay.do("relay")
        found = records(tmp_path)
        notes = [(stream, text) for stream, _, text in found if text.startswith(b"nativert")]
        dropped = relay.lost_bytes
        assert notes == [(b"stderr", b"nativert: %d bytes of log dropped" % dropped)]
        assert [text for _, _, text in found[-2:]] == [b"calm", b"calm"]


def test_an_hour_of_silence_saves_up_no_more_than_one_burst(tmp_path: Path) -> None:
    with LogRelay(tmp_path, max_bytes=64 << 20) as relay:
        relay.do("clock", 3600 * NS)
        relay.do("relay")
        for _ in range(5):
            relay.do("repeat", 40000, (b"a" * 99 + b"\n").hex())
        assert len(text(tmp_path)) <= BURST
        assert relay.lost_bytes > 3_000_000


def test_small_writes_do_not_cost_a_wake_up_each(relay: LogRelay) -> None:
    waits = 0
    for _ in range(400):
        relay.do("put", b".\n".hex())
        assert relay.do("relay")
        if relay.state.waits_ns:
            # After a short burst more may gather, a few milliseconds at a time.
            assert relay.state.waits_ns < NS // 100
            waits += 1
            relay.do("clock", relay.state.waits_ns)
            assert relay.do("relay")
    assert waits >= 200
    assert len(records(relay.directory)) == 400


def test_a_record_that_a_full_disk_cuts_is_taken_back(relay: LogRelay) -> None:
    relay.say(b"kept\n")
    relay.do("room", 20)
    relay.say(b"cut short\n")
    assert relay.lost_bytes == len(b"cut short\n")
    relay.do("room", -1)
    relay.say(b"room again\n")
    assert [text for _, _, text in records(relay.directory)] == [
        b"kept",
        b"nativert: 10 bytes of log dropped",
        b"room again",
    ]


def test_the_gap_is_told_after_the_disk_has_room_and_not_before(relay: LogRelay) -> None:
    relay.do("room", 0)
    for number in range(3):
        relay.say(b"lost %d\n" % number)
    assert relay.lost_bytes == 3 * 7
    relay.do("room", -1)
    relay.say(b"back\n")
    assert [text for _, _, text in records(relay.directory)] == [
        b"nativert: 21 bytes of log dropped",
        b"back",
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["say", "room"]), st.binary(max_size=400), st.integers(0, 900)),
        max_size=25,
    )
)
def test_what_is_not_stored_is_counted(steps: list[tuple[str, bytes, int]]) -> None:
    """On a disk whose room comes and goes: every byte is stored once, in order, or counted."""
    import tempfile

    with tempfile.TemporaryDirectory() as name, LogRelay(Path(name), files=2) as relay:
        said = b""
        for what, data, room in steps:
            if what == "room":
                relay.do("room", room)
            elif data:
                relay.say(data)
                said += data
        relay.do("finish")
        kept = [found for found in records(Path(name)) if not found[2].startswith(b"nativert: ")]
        stored = b"".join(text + (b"\n" if tag == b"F" else b"") for _, tag, text in kept)
        assert len(stored) + relay.lost_bytes == len(said)
        # In order: each record is found behind the one before it.
        at = 0
        for _, tag, text in kept:
            piece = text + (b"\n" if tag == b"F" else b"")
            at = said.index(piece, at) + len(piece)


def test_a_directory_that_went_away_does_not_stop_the_relay(relay: LogRelay) -> None:
    relay.directory.rmdir()
    relay.say(b"nowhere\n")
    assert relay.lost_bytes == 8


def test_a_link_in_place_of_the_log_is_not_followed(relay: LogRelay, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "current").symlink_to(target)
    relay.say(b"redirected\n")
    assert target.read_bytes() == b"precious"
    assert relay.lost_bytes == 11


def test_the_end_does_not_wait_for_a_writer_outside(relay: LogRelay) -> None:
    assert relay.do("keep-writer") > 0
    relay.do("put", b"last words\nand a".hex())
    relay.do("finish")
    assert text(relay.directory) == b"last words\nand a"


def test_the_end_takes_all_that_a_pipe_can_hold(relay: LogRelay) -> None:
    written = relay.do("fill")
    assert written > 500_000
    relay.do("finish")
    assert len(text(relay.directory)) == written
