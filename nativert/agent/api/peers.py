"""Who may ask: root and, where configured, a group; by what the kernel says of the other end."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from collections.abc import Iterator

from nativert.errors import Code, NativertError

_UCRED = struct.Struct("3i")
_SO_PEERGROUPS = 59
# As much as getsockopt gives: 256 groups.
_GROUPS_BYTES = 1024


def check(sock: socket.socket, secured: ssl.SSLObject | None, gid: int | None) -> None:
    """Refuse a connection whose other end is not allowed; NativertError(PERMISSION)."""
    if sock.family == socket.AF_UNIX:
        _, uid, group = _UCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        if uid in (0, os.geteuid()) or (gid is not None and gid in (group, *_groups(sock))):
            return
        raise NativertError(f"uid {uid} may not use this node", code=Code.PERMISSION)
    if secured is not None:
        return  # The handshake has checked the certificate.
    owner = _owner(sock)
    if owner not in (0, os.geteuid()):
        who = "nobody known" if owner is None else f"uid {owner}"
        raise NativertError(f"{who} may not use this node", code=Code.PERMISSION)


def _groups(sock: socket.socket) -> Iterator[int]:
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError as e:
        if e.errno != errno.ERANGE:
            raise
        return  # More than can be read: only the first one counts.
    for (number,) in struct.iter_unpack("I", data):
        yield number


def _owner(sock: socket.socket) -> int | None:
    """Return the uid that owns the other end of a loopback connection; see proc(5) on net/tcp."""
    there, here = _hexadecimal(sock.getpeername()), _hexadecimal(sock.getsockname())
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{name}", encoding="ascii") as table:
                next(table)
                for line in table:
                    fields = line.split()
                    if (fields[1], fields[2]) == (there, here):
                        return int(fields[7])
        except FileNotFoundError:
            continue
    return None


def _hexadecimal(address: tuple[str, int]) -> str:
    # Each 32-bit word of the address stands in the host's byte order.
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    packed = socket.inet_pton(family, address[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"
