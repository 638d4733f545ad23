"""Bringing what was written to the disk while the caller does something else.

The kernel's asynchronous fdatasync: IOCB_CMD_FDSYNC, see io_submit(2). A thread of Python's
would wait for the interpreter's lock twice, which takes longer than the disk.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Final

import msgspec

from nativert.isolation import syscalls

# Without CONFIG_AIO, and where fs.aio-max-nr is used up.
_UNAVAILABLE: Final = (errno.ENOSYS, errno.EAGAIN)
_AT_ONCE: Final = 32
# How much longer a file is made at once: nobody else commits meanwhile.
_PART: Final = 256 << 10


class Saving(msgspec.Struct, frozen=True):
    """One fdatasync that was asked for, and whose end is waited for once."""

    disk: Disk
    number: int

    def wait(self) -> None:
        """Return when all that was written before it was asked for is on the disk; OSError."""
        self.disk.wait(self.number)


class Disk:
    """The file *path*, which is there when it is first asked to be saved; any thread may call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._fd: int | None = None
        self._context: int | None = None
        self._asked = 0
        # errno, or 0, of those that have ended and are waited for.
        self._ended: dict[int, int] = {}

    def save(self) -> Saving:
        """Ask for all that was written until now; whoever asks waits."""
        with self._mutex:
            self._asked += 1
            self._submit(self._asked)
            return Saving(self, self._asked)

    def wait(self, number: int) -> None:
        """Wait for the one of this *number*."""
        with self._mutex:
            while number not in self._ended:
                self._reap()
            if error := self._ended.pop(number):
                raise OSError(error, os.strerror(error), os.fspath(self._path))

    def lengthen(self, length: int) -> bool:
        """Have the file a part longer, by zeros, up to *length* bytes; False when it is so long.

        Where blocks are there already a commit is its data and no change of the file system's
        own, which is half of the writing. The caller keeps others from writing to it. OSError.
        """
        with self._mutex:
            fd = self._opened()
            present = os.fstat(fd).st_size
            if present >= length:
                return False
            os.pwrite(fd, bytes(min(_PART, length - present)), present)
            return True

    def close(self) -> None:
        """Wait for what was asked for, and release what that needs; safe to call again."""
        with self._mutex:
            if self._context is not None:
                syscalls.io_destroy(self._context)
                self._context = None
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _opened(self) -> int:
        if self._fd is None:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self._context = syscalls.io_setup(_AT_ONCE)
            except OSError as e:
                if e.errno not in _UNAVAILABLE:
                    raise
        return self._fd

    def _submit(self, number: int) -> None:
        fd = self._opened()
        if self._context is not None:
            while not syscalls.io_submit_fdsync(self._context, fd, number):
                self._reap()
            return
        try:
            os.fdatasync(fd)
        except OSError as e:
            self._note(number, e.errno or errno.EIO)
        else:
            self._note(number, 0)

    def _reap(self) -> None:
        if self._context is None:
            raise ValueError(f"{self._path} is closed, or was waited for already")
        self._note(*syscalls.io_getevent(self._context))

    def _note(self, number: int, error: int) -> None:
        self._ended[number] = error
