"""Packets: what is sent arrives, what is damaged is refused and leaves no descriptor."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Iterator

import pytest
import scale
from hypothesis import given
from hypothesis import strategies as st

from nativert.launcher import protocol

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(scale.LONG_S)
    theirs.settimeout(scale.LONG_S)
    with ours, theirs:
        yield ours, theirs


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def send_raw(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights)


def test_a_message_arrives_with_duplicates_of_its_descriptors(pair: Pair) -> None:
    reader, writer = os.pipe()
    protocol.send(pair[0], {"verb": "exec", "text": "\udcff é"}, [writer])
    os.close(writer)
    message, (received,) = protocol.receive(pair[1])
    assert message == {"verb": "exec", "text": "\udcff é"}
    assert not os.get_inheritable(received)
    os.write(received, b"through")
    assert os.read(reader, 10) == b"through"
    os.close(received)
    os.close(reader)


@pytest.mark.parametrize("length", [65000, 65536, 65537, 3 << 20])
def test_a_large_message_takes_a_memfd_and_leaves_none(pair: Pair, length: int) -> None:
    before = descriptors()
    null = os.open("/dev/null", os.O_RDONLY)
    protocol.send(pair[0], {"text": "x" * length}, [null])
    os.close(null)
    message, fds = protocol.receive(pair[1])
    assert len(message["text"]) == length
    assert [os.path.samestat(os.fstat(fd), os.stat("/dev/null")) for fd in fds] == [True]
    os.close(fds[0])
    assert descriptors() == before


def test_a_message_over_the_limit_is_refused_unread(pair: Pair) -> None:
    before = descriptors()
    memfd = os.memfd_create("big")
    os.truncate(memfd, protocol.MAX_MESSAGE + 1)
    send_raw(pair[0], b'{"large":true}', [memfd])
    os.close(memfd)
    with pytest.raises(ValueError, match="message of"):
        protocol.receive(pair[1])
    assert descriptors() == before


BAD_PACKETS = {
    "no JSON": b"\x00\xff{",
    "not an object": b"[1]",
    "nested": b"[" * 60000,
    "a long number": b'{"n":' + b"9" * 5000 + b"}",
    "large without a memfd behind it": b'{"large":true}',
    "nothing": b"",
}


@pytest.mark.parametrize("data", BAD_PACKETS.values(), ids=BAD_PACKETS.keys())
def test_a_bad_packet_is_refused_and_its_descriptors_are_closed(pair: Pair, data: bytes) -> None:
    before = descriptors()
    reader, writer = os.pipe()
    # A pipe first: it can be neither measured nor read like a memfd.
    send_raw(pair[0], data, [reader, writer])
    os.close(writer)
    with pytest.raises((ValueError, EOFError)):
        protocol.receive(pair[1])
    os.close(reader)
    assert descriptors() == before


def test_more_descriptors_than_any_verb_takes_are_refused_and_closed(pair: Pair) -> None:
    before = descriptors()
    null = os.open("/dev/null", os.O_RDONLY)
    send_raw(pair[0], b"{}", [null] * 40)
    os.close(null)
    with pytest.raises(ValueError, match="too large"):
        protocol.receive(pair[1])
    assert descriptors() == before


def test_the_end_of_the_peer_is_told_from_a_time_out(pair: Pair) -> None:
    pair[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        protocol.receive(pair[1])
    pair[0].close()
    with pytest.raises(EOFError):
        protocol.receive(pair[1])


def test_the_last_word_of_a_peer_that_read_nothing_is_heard(pair: Pair) -> None:
    protocol.send(pair[1], {"verb": "never read"})
    protocol.send(pair[0], {"error": "why"})
    pair[0].close()
    assert protocol.receive(pair[1])[0] == {"error": "why"}
    with pytest.raises(EOFError):
        protocol.receive(pair[1])


@given(data=st.binary(max_size=2000), count=st.integers(0, 3))
def test_any_bytes_give_a_message_or_one_of_two_errors(data: bytes, count: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        before = descriptors()
        send_raw(ours, data, [0] * count if os.path.exists("/proc/self/fd/0") else [])
        ours.shutdown(socket.SHUT_WR)
        try:
            message, fds = protocol.receive(theirs)
        except (ValueError, EOFError):
            fds = []
        else:
            assert isinstance(message, dict)
        for fd in fds:
            os.close(fd)
        assert descriptors() == before


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=50),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
            max_leaves=10,
        ),
        max_size=5,
    )
)
def test_what_json_can_say_survives_the_way(message: protocol.Message) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        protocol.send(ours, message)
        assert protocol.receive(theirs) == (message, [])


def test_a_failed_step_is_reported_with_errno_and_path() -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", "/etc/shadow")
    assert protocol.error_message("exec", refused) == {
        "error": {
            "step": "exec",
            "errno": errno.EACCES,
            "path": "/etc/shadow",
            "text": "Permission denied",
        }
    }
    assert protocol.error_message("init", KeyError())["error"]["text"] == "KeyError()"


def test_hello_names_protocol_version_and_boot() -> None:
    hello = protocol.hello()
    assert hello["proto"] == protocol.PROTO == 1
    assert hello["pid"] == os.getpid()
    assert len(hello["boot_id"]) == 36
