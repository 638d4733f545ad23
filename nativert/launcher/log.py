"""The application's log: two pipes, relayed to files with a size cap.

Each line is stored as Kubernetes' CRI logging format has it,
``2026-11-22T08:00:00.000000000Z stdout F text``; P marks a piece without its end of
line. Reading never waits for the disk to have room: what cannot be written, or comes
faster than the node wants to spend on logs, is dropped and counted, so that a log
neither blocks nor kills the application.
"""

from __future__ import annotations

import os
import time
from typing import Final

CURRENT: Final = "current"
_CHUNK: Final = 64 << 10
_MAX_LINE: Final = 16 << 10
# Sustained bytes a second that are kept; a burst of as much is free. Beyond it the pipe is
# drained at the price of a read.
_RATE: Final = 16 << 20


class Log:
    """One instance's log files beneath a directory descriptor."""

    def __init__(self, directory: int, max_bytes: int, files: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._files = files
        self._fd = -1
        self._size = 0
        self.lost_bytes = 0
        self._told_bytes = 0

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(CURRENT, flags, 0o640, dir_fd=self._directory)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        os.close(self._fd)
        self._fd = -1
        d = self._directory
        for i in range(self._files - 1, 0, -1):
            older = CURRENT if i == 1 else str(i - 1)
            try:
                os.rename(older, str(i), src_dir_fd=d, dst_dir_fd=d)
            except FileNotFoundError:
                continue
        if self._files == 1:
            os.unlink(CURRENT, dir_fd=d)

    def write(self, stream: str, data: bytes, *, partial: bool = False) -> None:
        """Append *data*, whole lines of *stream*; with *partial* a piece of one."""
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1_000_000_000))
        tag = "P" if partial else "F"
        head = f"{stamp}.{now % 1_000_000_000:09d}Z {stream} {tag} ".encode()
        if self.lost_bytes > self._told_bytes and not partial:
            note = f"nativert: {self.lost_bytes - self._told_bytes} bytes of log dropped\n"
            self._told_bytes = self.lost_bytes
            self._append(head.replace(b" stdout ", b" stderr ") + note.encode(), 0)
        lines = data[:-1] if data.endswith(b"\n") else data
        self._append(head + lines.replace(b"\n", b"\n" + head) + b"\n", len(data))

    def _append(self, record: bytes, payload: int) -> None:
        try:
            if self._fd < 0:
                self._open()
            if self._size + len(record) > self._max_bytes and self._size:
                self._rotate()
                self._open()
            written = os.write(self._fd, record)
            self._size += written
        except OSError:
            # A full disk: the application goes on, the gap is told when there is room.
            self.lost_bytes += payload


class Pipe:
    """The reading end of one of the application's output streams."""

    def __init__(self, log: Log, stream: str) -> None:
        self.fd, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        self._log = log
        self._stream = stream
        self._rest = b""
        self._credit = float(_RATE)
        self._since = time.monotonic()

    @property
    def pending(self) -> bool:
        """Whether a piece of a line waits for its end."""
        return bool(self._rest)

    def relay(self) -> bool:
        """Read once and log it; False at end-of-file."""
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return True
        if not data:
            self.flush()
            return False
        now = time.monotonic()
        self._credit = min(_RATE, self._credit + (now - self._since) * _RATE)
        self._since = now
        if len(data) > self._credit:
            self._log.lost_bytes += len(data) + len(self._rest)
            self._rest = b""
            return True
        self._credit -= len(data)
        end = data.rfind(b"\n") + 1
        if end:
            self._log.write(self._stream, self._rest + data[:end])
            self._rest = data[end:]
        else:
            self._rest += data
        if len(self._rest) > _MAX_LINE:
            self.flush()
        return True

    def flush(self) -> None:
        """Log a piece of a line that has no end yet, such as a prompt."""
        if self._rest:
            self._log.write(self._stream, self._rest, partial=True)
            self._rest = b""

    def close(self) -> None:
        """Close both ends."""
        for fd in (self.fd, self.writer):
            if fd >= 0:
                os.close(fd)
        self.fd = self.writer = -1

    def close_writer(self) -> None:
        """Close the writing end, once the application holds it."""
        os.close(self.writer)
        self.writer = -1
