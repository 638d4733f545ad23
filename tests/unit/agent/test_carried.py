"""A request of another node under way: parts outwards, pieces inwards, as they are read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from nativert.agent.nodes import carried as module
from nativert.agent.nodes import messages
from nativert.agent.nodes.carried import Carried
from nativert.agent.nodes.messages import Piece

LONG_S = 20.0


@pytest.fixture
def sent() -> list[bytes]:
    return []


@pytest.fixture
def one(sent: list[bytes]) -> Carried:
    return Carried(sent.append)


def piece(number: int) -> Piece:
    return Piece(id="1", number=number, data=b"%d" % number)


def started(job: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    return thread


def test_pieces_come_once_and_in_order(one: Carried) -> None:
    assert one.give(piece(1))
    assert one.give(piece(1))
    assert one.give(piece(3))
    assert one.give(piece(2))
    assert one.next() == piece(1)
    assert one.next() == piece(2)
    assert one.give(piece(3))
    assert one.next() == piece(3)


def test_a_giver_waits_for_room(one: Carried) -> None:
    took: list[bool] = []
    for number in range(1, module._ROOM + 1):
        assert one.give(piece(number))
    thread = started(lambda: took.append(one.give(piece(module._ROOM + 1))))
    thread.join(0.05)
    assert not took
    assert one.next() == piece(1)
    thread.join(LONG_S)
    assert took == [True]


@pytest.mark.parametrize("end", ["finish", "drop"])
def test_at_the_end_nobody_waits(one: Carried, end: str) -> None:
    found: list[object] = []
    taker = started(lambda: found.append(one.next()))
    getattr(one, end)()
    taker.join(LONG_S)
    assert found == [None]
    assert not one.give(piece(1))


def test_parts_wait_for_who_reads_them(one: Carried, sent: list[bytes]) -> None:
    for _ in range(messages.WINDOW):
        one.send(b"part")
    thread = started(lambda: one.send(b"more"))
    thread.join(0.05)
    assert len(sent) == messages.WINDOW
    one.taken(1)
    thread.join(LONG_S)
    assert sent[-1] == b"more"
    one.drop()
    with pytest.raises(ConnectionResetError):
        one.send(b"nobody reads it")


def test_who_gives_is_there(one: Carried) -> None:
    one.heard = time.monotonic() - 100
    one.give(piece(1))
    assert time.monotonic() - one.heard < LONG_S


def test_what_is_given_up_is_broken_off(one: Carried) -> None:
    called: list[str] = []
    with one.broken_off_by(lambda: called.append("while it lasts")):
        one.drop()
    one.drop()
    assert called == ["while it lasts"]
    with pytest.raises(ConnectionResetError), one.broken_off_by(lambda: called.append("never")):
        pass
    assert len(called) == 1
