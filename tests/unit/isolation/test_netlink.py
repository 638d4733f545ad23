"""Packing of requests, errors with the kernel's reason; asking needs no rights."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from nativert.isolation.network.netlink import (
    NETLINK_ROUTE,
    NLM_F_DUMP,
    WINDOW,
    Netlink,
    Request,
    attribute,
    attributes,
)

RTM_NEWLINK, RTM_GETLINK = 16, 18
IFINFOMSG = struct.Struct("=BxHiII")


@pytest.fixture
def route() -> Iterator[Netlink]:
    with Netlink(NETLINK_ROUTE) as made:
        yield made


def get(index: int, what: str = "get link") -> Request:
    return Request(RTM_GETLINK, 0, IFINFOMSG.pack(0, 0, index, 0, 0), what, f"link {index}")


def index_in(answer: bytes) -> int:
    return int(IFINFOMSG.unpack_from(answer)[2])


def test_attributes_round_trip_padded() -> None:
    data = attribute(1, b"abc") + attribute(2 | 0x8000, attribute(3, b"")) + attribute(4, b"1234")
    assert len(data) % 4 == 0
    assert attributes(data) == {1: b"abc", 2: attribute(3, b""), 4: b"1234"}


@pytest.mark.parametrize("data", [b"\0", b"\3\0\1\0", bytes(8), b"\xff\xff\1\0ab"])
def test_broken_attributes_end_the_reading(data: bytes) -> None:
    assert set(attributes(data)) <= {1}


def test_answers_belong_to_their_requests(route: Netlink) -> None:
    answers = route.transact([get(1), get(1), get(1)])
    assert [[index_in(body) for body in bodies] for bodies in answers] == [[1], [1], [1]]


def test_more_requests_than_fit_a_window(route: Netlink) -> None:
    answers = route.transact([get(1)] * (WINDOW * 20 + 1))
    assert len(answers) == WINDOW * 20 + 1
    assert all(len(bodies) == 1 for bodies in answers)


def test_nothing_asked_is_nothing_sent(route: Netlink) -> None:
    assert route.transact([]) == []


def test_a_dump_answers_with_every_link(route: Netlink) -> None:
    request = Request(RTM_GETLINK, NLM_F_DUMP, IFINFOMSG.pack(0, 0, 0, 0, 0), "list links")
    [bodies] = route.transact([request])
    assert {index_in(body) for body in bodies} == {index for index, _ in socket.if_nameindex()}


def test_the_first_refusal_is_raised_and_the_socket_goes_on(route: Netlink) -> None:
    requests = [get(1), get(0x7FFFFFF0, "first"), get(0x7FFFFFF1, "second")]
    with pytest.raises(OSError, match=r"first.*link 2147483632") as refusal:
        route.transact(requests)
    assert refusal.value.errno == errno.ENODEV
    assert index_in(route.transact([get(1)])[0][0]) == 1


def test_answers_to_an_abandoned_request_are_skipped(
    route: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(route, "_collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        route.transact([get(1)])
    monkeypatch.undo()
    assert [len(bodies) for bodies in route.transact([get(1), get(1)])] == [1, 1]


def test_names_and_indexes(route: Netlink) -> None:
    assert route.index_of("lo") == 1
    assert route.name_of(1) == "lo"
    for name in ("nonesuch", "a-name-that-is-far-too-long"):
        with pytest.raises(OSError, match=name) as refusal:
            route.index_of(name)
        assert refusal.value.errno == errno.ENODEV
    with pytest.raises(OSError, match="link 2147483632") as refusal:
        route.name_of(0x7FFFFFF0)
    assert refusal.value.errno == errno.ENODEV
