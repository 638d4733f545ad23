"""The application's log: two pipes, relayed to files with a size cap.

Each line is stored as Kubernetes' CRI logging format has it,
``2026-11-22T08:00:00.000000000Z stdout F text``; P marks a piece without its end of
line. Reading never waits for the disk to have room: what cannot be written, or comes
faster than the node wants to spend on logs, is dropped and counted, so that a log
neither blocks nor kills the application. What an application can make its init do is
bounded in bytes stored and in reads a second, however small or large its writes are.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Final

CURRENT: Final = "current"
_CHUNK: Final = 64 << 10
_PIPE_BYTES: Final = 256 << 10
_MAX_LINE: Final = 16 << 10
# "2026-11-22T08:00:00.000000000Z stdout F " and the end of line.
_HEAD_BYTES: Final = 41
# Bytes a second that are stored, counted as they are stored: an empty line is 41 bytes. A
# burst is free. Beyond it the pipe is drained at the price of a read.
_RATE: Final = 4 << 20
_BURST: Final = 16 << 20
# Wake-ups a second and pipe: a write of one byte costs an application a hundredth of what
# reading it at once would cost init. Waiting lets the writes gather.
_READS: Final = 250
_READS_BURST: Final = 100


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
        lost_bytes = self.lost_bytes
        if lost_bytes > self._told_bytes and not partial:
            note = f"nativert: {lost_bytes - self._told_bytes} bytes of log dropped\n"
            if self._append(head.replace(b" stdout ", b" stderr ") + note.encode(), 0):
                self._told_bytes = lost_bytes
        lines = data[:-1] if data.endswith(b"\n") else data
        self._append(head + lines.replace(b"\n", b"\n" + head) + b"\n", len(data))

    def _append(self, records: bytes, payload: int) -> bool:
        start = 0
        try:
            while start < len(records):
                if self._fd < 0:
                    self._open()
                end = len(records)
                room = self._max_bytes - self._size
                if end - start > room:
                    end = records.rfind(b"\n", start, start + max(room, 0)) + 1
                if not end:
                    if self._size:
                        self._rotate()
                        continue
                    # A record that is larger than a file gets one of its own.
                    end = records.index(b"\n", start) + 1
                self._put(records[start:end])
                start = end
        except OSError:
            # A full disk: the application goes on, the gap is told when there is room.
            self.lost_bytes += payload - payload * start // len(records)
            return False
        return True

    def _put(self, records: bytes) -> None:
        written = os.write(self._fd, records)
        if written < len(records):
            # Room for a part only: what comes next must not be taken for the rest of it.
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, "no room")
        self._size += written


class Pipe:
    """The reading end of one of the application's output streams."""

    def __init__(self, log: Log, stream: str) -> None:
        self.fd, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            pass  # It stays at 64 KiB, and a flood is slower.
        self._log = log
        self._stream = stream
        self._rest = b""
        self._credit = float(_BURST)
        self._reads = float(_READS_BURST)
        self._since = time.monotonic()

    @property
    def pending(self) -> bool:
        """Whether a piece of a line waits for its end."""
        return bool(self._rest)

    def relay(self) -> bool:
        """Read what is there and log it; False at end-of-file. Waits 1/250 s in a flood."""
        self._earn()
        if self._reads < 1:
            time.sleep(1 / _READS)
            self._earn()
        self._reads -= 1
        return self.drain() is not False

    def drain(self) -> bool | None:
        """Log what is in the pipe now; False at end-of-file, None if a writer is still there.

        Reads no more than the pipe can hold, so a writer that goes on keeps nobody here.
        """
        for _ in range(_PIPE_BYTES // _CHUNK):
            try:
                data = os.read(self.fd, _CHUNK)
            except BlockingIOError:
                return None
            if not data:
                self.flush()
                return False
            self._take(data)
        return True

    def _earn(self) -> None:
        now = time.monotonic()
        elapsed_s = now - self._since
        self._credit = min(_BURST, self._credit + elapsed_s * _RATE)
        self._reads = min(_READS_BURST, self._reads + elapsed_s * _READS)
        self._since = now

    def _take(self, data: bytes) -> None:
        cost = len(data) + data.count(b"\n") * _HEAD_BYTES
        if cost > self._credit:
            self._log.lost_bytes += len(data) + len(self._rest)
            self._rest = b""
            return
        self._credit -= cost
        end = data.rfind(b"\n") + 1
        if end:
            self._log.write(self._stream, self._rest + data[:end])
            self._rest = data[end:]
        else:
            self._rest += data
        if len(self._rest) > _MAX_LINE:
            self.flush()

    def flush(self) -> None:
        """Log a piece of a line that has no end yet, such as a prompt."""
        if self._rest:
            self._log.write(self._stream, self._rest, partial=True)
            self._rest = b""

    def finish(self) -> None:
        """Log what is left and close, once every process of the instance is dead.

        No end-of-file is waited for: the application may have passed the writing end to a
        process of another instance.
        """
        # As much as an unprivileged process can make a pipe hold, see pipe(7).
        for _ in range((1 << 20) // _PIPE_BYTES + 1):
            if self.drain() is not True:
                break
        self.flush()
        self.close()

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
