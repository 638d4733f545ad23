"""A netlink(7) socket that takes several requests in one datagram and waits for every answer.

It knows headers, acknowledgements and errors; what a message means is the caller's affair.
pyroute2 encodes the messages of `links`; its own sockets keep one asyncio loop per calling
thread and cannot be called where a loop runs, which an agent with many threads cannot live with.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

_SIOCGIFNAME: Final = 0x8910
_SIOCGIFINDEX: Final = 0x8933
_IFREQ: Final = struct.Struct("=16si20x")
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSGERR_ATTR_MSG: Final = 1
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_RECEIVE_BYTES: Final = 1 << 18
# The answers to one datagram wait in the receive buffer, 208 KB unless the host says less; a
# link takes 2 KB of it.
WINDOW: Final = 32


@dataclass(frozen=True, slots=True)
class Request:
    """One message without its header; `what` and `subject` name it in an error."""

    kind: int
    flags: int
    body: bytes
    what: str
    subject: str = ""


def attribute(kind: int, value: bytes) -> bytes:
    """Return one padded attribute; see netlink(7)."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return attributes by number, without the nested and byte order flags."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


class Netlink:
    """One socket in the calling thread's network namespace; usable from every thread."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._lock = threading.Lock()
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; safe twice."""
        self._socket.close()

    def index_of(self, link: str) -> int:
        """Return the index of a link of the socket's namespace, or ENODEV; see netdevice(7)."""
        # socket.if_nametoindex() loses the errno and asks the thread's namespace instead.
        return self._interface(_SIOCGIFINDEX, link, 0)[1]

    def name_of(self, index: int) -> str:
        """Return the name of a link of the socket's namespace, or ENODEV; see netdevice(7)."""
        return self._interface(_SIOCGIFNAME, "", index)[0]

    def _interface(self, request: int, name: str, index: int) -> tuple[str, int]:
        if len(name) > 15:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
        try:
            answer = fcntl.ioctl(self._socket, request, _IFREQ.pack(name.encode(), index))
        except OSError as e:
            raise OSError(e.errno, e.strerror, name or f"link {index}") from None
        found, number = _IFREQ.unpack(answer)
        return found.rstrip(b"\0").decode(), number

    def transact(self, requests: Sequence[Request]) -> list[list[bytes]]:
        """Send all requests and return the bodies of the answers to each.

        The kernel goes on after a refused request; the first refusal is raised as OSError
        when those sent with it (`WINDOW` at most) are answered.
        """
        answers: list[list[bytes]] = []
        with self._lock:
            for start in range(0, len(requests), WINDOW):
                answers += self._window(requests[start : start + WINDOW])
        return answers

    def _window(self, requests: Sequence[Request]) -> list[list[bytes]]:
        waiting: dict[int, int] = {}
        datagram = bytearray()
        for position, request in enumerate(requests):
            self._sequence = self._sequence % 0xFFFF_FFFF + 1
            waiting[self._sequence] = position
            flags = request.flags | NLM_F_REQUEST | NLM_F_ACK
            length = _HEADER.size + len(request.body)
            datagram += _HEADER.pack(length, request.kind, flags, self._sequence, 0)
            datagram += request.body + bytes(-length % 4)
        self._socket.send(datagram)
        answers, refused = self._collect(waiting, len(requests))
        if refused:
            position = min(refused)
            number, text = refused[position]
            request = requests[position]
            reason = f"{request.what}: {os.strerror(number)}" + (f": {text}" if text else "")
            raise OSError(number, reason, request.subject or None)
        return answers

    def _collect(
        self, waiting: dict[int, int], count: int
    ) -> tuple[list[list[bytes]], dict[int, tuple[int, str]]]:
        answers: list[list[bytes]] = [[] for _ in range(count)]
        refused: dict[int, tuple[int, str]] = {}
        while waiting:
            data = self._socket.recv(_RECEIVE_BYTES)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
                body = data[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3
                # Answers to a transaction that an exception cut short are still in the queue.
                if sequence not in waiting:
                    continue
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    position = waiting.pop(sequence)
                    if number > 0:
                        refused[position] = (number, _explanation(flags, body))
                else:
                    answers[waiting[sequence]].append(body)
        return answers, refused


def _explanation(flags: int, body: bytes) -> str:
    # nlmsgerr: the error, the refused header, then attributes (the rest is capped).
    if not flags & _NLM_F_ACK_TLVS:
        return ""
    text = attributes(body[4 + _HEADER.size :]).get(_NLMSGERR_ATTR_MSG, b"")
    return text.rstrip(b"\0").decode(errors="replace")
