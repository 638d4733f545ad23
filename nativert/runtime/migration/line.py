"""The lines between the node and an application that listens on a Unix socket; see unix(7).

    node          application
    prepare  ──▶
             ◀──  ready           or anything else, which is why it stays
    resume   ──▶                  it stays after all; so does the end of the connection

The path and all that is said are the application's: the path is resolved in the instance's own
root, nobody but the instance is spoken to, lines are bounded, and nothing waits longer than its
time.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Collection
from typing import Final, Self

from nativert.fdu.quantity import show
from nativert.runtime.diagnosis_root import Root

PREPARE: Final = b"prepare\n"
READY: Final = b"ready"
RESUME: Final = b"resume\n"
MAX_LINE: Final = 256
_AGAIN_S: Final = 0.05
# Its listener is not there yet, or has not taken those before us.
_NOT_YET: Final = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid


class Line:
    """One connection; every refusal and failure is an OSError. A context manager."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._connected = False
        self._deadline = 0.0
        self._timeout_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def connect(self, root: Root, path: str, owners: Collection[int], *, timeout_s: float) -> None:
        """Connect to the listener at *path* of the instance, which must belong to *owners*.

        An application that has just begun may not listen yet: it is tried until *timeout_s*,
        in which `prepare` must be answered too, is over.
        """
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._connect(root, path)
                break
            except OSError as e:
                if e.errno not in _NOT_YET:
                    raise
                if time.monotonic() + _AGAIN_S > self._deadline:
                    why = os.strerror(e.errno)
                    reason = f"takes no connection within {timeout_s:g} s: {why}"
                    raise OSError(e.errno, reason) from e
            time.sleep(_AGAIN_S)
        self._connected = True
        # Of when it began to listen: a socket of the host that is shown inside is not the
        # application's, whoever listens there.
        credentials = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(credentials)[1] not in owners:
            self._connected = False
            raise PermissionError(errno.EPERM, "who listens there is not the application")

    def _connect(self, root: Root, path: str) -> None:
        with root.found(path) as fd:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise OSError(errno.ENOTSOCK, "is not a socket")
            # With a time-out connect(2) does not wait for room in the listener's queue.
            self._sock.settimeout(self._left_s())
            self._sock.connect(f"/proc/self/fd/{fd}")

    def prepare(self) -> None:
        """Have the application get ready; OSError where it does not want to, or not in time."""
        try:
            self._sock.settimeout(self._left_s())
            self._sock.sendall(PREPARE)
            said = self._answer()
        except TimeoutError:
            reason = f"no answer to prepare after {self._timeout_s:g} s"
            raise TimeoutError(errno.ETIMEDOUT, reason) from None
        if said != READY:
            raise OSError(errno.ECANCELED, f"says {show(said.decode(errors='replace'))}")

    def _answer(self) -> bytes:
        said = b""
        while b"\n" not in said:
            if len(said) >= MAX_LINE:
                raise OSError(errno.EMSGSIZE, f"answers more than {MAX_LINE} bytes in a line")
            self._sock.settimeout(self._left_s())
            piece = self._sock.recv(MAX_LINE)
            if not piece:
                raise OSError(errno.ECONNRESET, "has closed the connection without an answer")
            said += piece
        return said.partition(b"\n")[0].rstrip(b"\r")

    def resume(self) -> None:
        """Tell that it goes on here; who does not read it sees the end of the connection."""
        if not self._connected:
            return
        try:
            self._sock.setblocking(False)
            self._sock.send(RESUME)
        except OSError:
            pass  # It has gone, or has never read what came before.

    def _left_s(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer after {self._timeout_s:g} s")
        return left
