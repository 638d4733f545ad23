"""The application's log, read back from the files that init writes (CRI logging format)."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

from nativert.isolation.syscalls import (
    IN_CREATE,
    IN_MODIFY,
    IN_MOVED_TO,
    inotify_add_watch,
    inotify_init1,
)
from nativert.launcher.protocol import LOG_FILE
from nativert.runtime.views import LogLine

_CHUNK = 256 << 10
# Only the end of the application is not a change of the file; it is asked for this often.
_LOOK_S = 0.2


def parse(record: bytes) -> LogLine | None:
    """Return one stored record; None for one that a full disk cut short."""
    parts = record.split(b" ", 3)
    if len(parts) != 4 or parts[2] not in (b"F", b"P") or parts[1] not in (b"stdout", b"stderr"):
        return None
    return LogLine(
        time=parts[0].decode("ascii", "replace"),
        stream="stdout" if parts[1] == b"stdout" else "stderr",
        text=parts[3],
        partial=parts[2] == b"P",
    )


def read(directory: Path, *, tail: int | None = None) -> Iterator[LogLine]:
    """Yield what is stored, the last *tail* records of it if given."""
    with closing(_Chain(directory)) as chain:
        yield from chain.read() if tail is None else deque(chain.read(), maxlen=tail)


def follow(
    directory: Path,
    *,
    tail: int | None,
    running: Callable[[], bool],
    waits: Callable[[], object] = lambda: None,
) -> Generator[LogLine, None, None]:
    """Yield what is stored and then what comes, until *running* says no and all is read.

    *waits* is called each time when all is read and more is waited for.
    """
    watch = inotify_init1()
    chain = _Chain(directory)
    try:
        inotify_add_watch(watch, str(directory), IN_MODIFY | IN_CREATE | IN_MOVED_TO)
        if tail is not None:
            yield from deque(chain.read(), maxlen=tail)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        while True:
            # Asked before the read: what was written before the end is in what is read after.
            goes_on = running()
            yield from chain.read()
            if not goes_on:
                return
            waits()
            if poll.poll(_LOOK_S * 1000):
                try:
                    os.read(watch, 65536)
                except BlockingIOError:
                    pass
    finally:
        chain.close()
        os.close(watch)


class _Chain:
    """Reads a log's files from the oldest to the current one, however they are rotated."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1
        self._rest = b""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def read(self) -> Iterator[LogLine]:
        """Yield what has been stored since the last call."""
        while True:
            if self._fd >= 0:
                yield from self._lines()
            following = self._next()
            if following < 0:
                return
            if self._fd >= 0:
                # Complete now: its writer has gone on to another. A record without an end
                # is one that a full disk cut short.
                yield from self._lines()
                os.close(self._fd)
            self._fd, self._rest = following, b""

    def _lines(self) -> Iterator[LogLine]:
        while data := os.read(self._fd, _CHUNK):
            *records, self._rest = (self._rest + data).split(b"\n")
            for record in records:
                line = parse(record)
                if line is not None:
                    yield line

    def _next(self) -> int:
        """Return a descriptor of the file after ours, or -1 if ours is the newest."""
        while True:
            names = self._names()
            ours = next((at for at, name in enumerate(names) if self._is(self._fd, name)), -1)
            # Ours may have been rotated out: then every file that is there came after it.
            if ours + 1 == len(names):
                return -1
            try:
                fd = os.open(self._directory / names[ours + 1], os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            # Renamed from the oldest on: if these stand where they stood, so do all between.
            stand = ours < 0 or self._is(self._fd, names[ours])
            if stand and self._is(fd, names[ours + 1]) and self._names() == names:
                return fd
            os.close(fd)

    def _names(self) -> list[str]:
        """Return the names of the files, the oldest first."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        old = sorted((int(name) for name in names if name.isdigit()), reverse=True)
        return [*map(str, old), *([LOG_FILE] if LOG_FILE in names else [])]

    def _is(self, fd: int, name: str) -> bool:
        try:
            return fd >= 0 and os.path.samestat(os.fstat(fd), os.stat(self._directory / name))
        except FileNotFoundError:
            return False
