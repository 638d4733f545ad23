"""Messages between runtime, launcher and init: one JSON object a packet, with descriptors.

A packet is at most 64 KiB; a larger object travels in a memfd. The first message both
ways is {proto, version, boot_id}. Init's verbs (hello, status, run, signal, script,
exec, release) are frozen as proto 1: an init outlives upgrades of what talks to it.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import struct
from collections.abc import Sequence

from nativert import __version__

TYPE_CHECKING = False  # typing costs a millisecond of every start
if TYPE_CHECKING:
    from typing import Any, Final

    Message = dict[str, Any]
else:
    Message = dict

PROTO: Final = 1
LAUNCHER_SOCKET: Final = "launcher.sock"
INIT_SOCKET: Final = "init.sock"
EXIT_FILE: Final = "exit.json"
LOG_FILE: Final = "current"
MAX_MESSAGE: Final = 16 << 20
_MAX_PACKET: Final = 64 << 10
MAX_FDS: Final = 16
_LARGE: Final = b'{"large":true}'


def hello() -> Message:
    """Return the first message of either side."""
    return {"proto": PROTO, "version": __version__, "boot_id": _boot_id(), "pid": os.getpid()}


@functools.cache
def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


# Made once: json.dumps makes another one each time where it is told the separators.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message and duplicates of *fds*; raises OSError."""
    data = _encode(message).encode()
    if len(data) <= _MAX_PACKET:
        if fds:
            socket.send_fds(sock, [data], list(fds), socket.MSG_NOSIGNAL)
        else:
            sock.send(data, socket.MSG_NOSIGNAL)
        return
    memfd = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        os.write(memfd, data)
        socket.send_fds(sock, [_LARGE], [memfd, *fds], socket.MSG_NOSIGNAL)
    finally:
        os.close(memfd)


def receive(sock: socket.socket) -> tuple[Message, list[int]]:
    """Receive one message and its descriptors; raises EOFError when the peer has gone.

    ValueError if the packet is not such a message; its descriptors are closed then.
    """
    try:
        data, ancillary, flags = _receive_packet(sock)
    except ConnectionResetError:
        # The peer closed without reading all of ours. What it said before comes next.
        data, ancillary, flags = _receive_packet(sock)
    fds = [fd for _, _, rights in ancillary for (fd,) in struct.iter_unpack("i", rights)]
    try:
        if not data:
            raise EOFError("the peer has closed the connection")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("packet too large")
        if data == _LARGE and fds:
            data = _read_memfd(fds.pop(0))
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("not an object")  # noqa: TRY004 - one error for every bad packet
    except BaseException as e:
        # A packet without bytes looks like the end, but may carry descriptors too.
        for fd in fds:
            os.close(fd)
        if isinstance(e, RecursionError):
            raise ValueError("nested too deeply") from None  # noqa: TRY004
        raise
    return message, fds


def _receive_packet(sock: socket.socket) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
    # Not socket.recv_fds: Python 3.11's forgets the flags.
    data, ancillary, flags, _ = sock.recvmsg(
        _MAX_PACKET, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC
    )
    return data, ancillary, flags


def _read_memfd(memfd: int) -> bytes:
    try:
        size = os.fstat(memfd).st_size
        if size > MAX_MESSAGE:
            raise ValueError(f"message of {size} bytes")
        return os.pread(memfd, size, 0)
    except OSError as e:
        raise ValueError(f"not a memfd: {e}") from e
    finally:
        os.close(memfd)


def error_message(step: str, error: BaseException) -> Message:
    """Return the report of a failed step: step, errno, path, text."""
    number = error.errno if isinstance(error, OSError) else None
    path = error.filename if isinstance(error, OSError) else None
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    return {"error": {"step": step, "errno": number, "path": path, "text": text or repr(error)}}


def address(directory: int, name: str) -> str:
    """Return a socket address in *directory*, short however long its path is.

    sun_path holds 108 bytes (unix(7)); the descriptor must stay open during the call.
    """
    return f"/proc/self/fd/{directory}/{name}"
