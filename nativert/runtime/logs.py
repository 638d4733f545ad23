"""The application's log, read back from the files that init writes (CRI logging format)."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from nativert.isolation.syscalls import (
    IN_CREATE,
    IN_MODIFY,
    IN_MOVED_TO,
    inotify_add_watch,
    inotify_init1,
)
from nativert.launcher.log import CURRENT
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


def _files(directory: Path) -> list[Path]:
    """Return the log files, oldest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    old = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    current = [directory / CURRENT] if CURRENT in names else []
    return [directory / str(number) for number in old] + current


def _records(path: Path) -> Iterator[bytes]:
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return
    with file:
        for record in file:
            if record.endswith(b"\n"):
                yield record[:-1]


def read(directory: Path, *, tail: int | None = None) -> Iterator[LogLine]:
    """Yield what is stored, the last *tail* records of it if given."""
    lines = (
        line for path in _files(directory) for record in _records(path) if (line := parse(record))
    )
    if tail is None:
        yield from lines
    else:
        yield from deque(lines, maxlen=tail)


def follow(directory: Path, *, tail: int | None, running: Callable[[], bool]) -> Iterator[LogLine]:
    """Yield what is stored and then what comes, until *running* says no and all is read."""
    watch = inotify_init1()
    try:
        inotify_add_watch(watch, str(directory), IN_MODIFY | IN_CREATE | IN_MOVED_TO)
        reader = _Reader(directory)
        # Opened before the older ones are listed: a rotation meanwhile loses nothing.
        older = [
            line
            for path in _files(directory)
            if path.name != CURRENT
            for record in _records(path)
            if (line := parse(record))
        ]
        lines = older + list(reader.read())
        yield from lines if tail is None else lines[-tail:] if tail else ()
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        while True:
            # Asked before the read: what was written before the end is in what is read after.
            goes_on = running()
            yield from reader.read()
            if not goes_on:
                return
            if poll.poll(_LOOK_S * 1000):
                try:
                    os.read(watch, 65536)
                except BlockingIOError:
                    pass
    finally:
        os.close(watch)


class _Reader:
    """Reads the current file onwards, over rotations."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / CURRENT
        self._fd = -1
        self._rest = b""

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read(self) -> Iterator[LogLine]:
        while True:
            if self._fd < 0:
                try:
                    self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    return
            while data := os.read(self._fd, _CHUNK):
                *records, self._rest = (self._rest + data).split(b"\n")
                for record in records:
                    line = parse(record)
                    if line is not None:
                        yield line
            if not self._rotated():
                return
            # Renamed: what was written up to the rename has been read above.
            os.close(self._fd)
            self._fd, self._rest = -1, b""

    def _rotated(self) -> bool:
        try:
            return not os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except FileNotFoundError:
            return True
