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

# Without CONFIG_AIO, and where fs.aio-max-nr is used up.
_UNAVAILABLE: Final = (errno.ENOSYS, errno.EAGAIN)
_AT_ONCE: Final = 32


class Saving(msgspec.Struct, frozen=True):
    """One fdatasync that was asked for."""

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
        self._saved = 0
        # The last that failed, and why: the kernel tells an error of the disk once.
        self._failed = 0
        self._errno = 0

    def save(self) -> Saving:
        """Ask for all that was written until now."""
        from nativert.isolation import syscalls

        with self._mutex:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    self._context = syscalls.io_setup(_AT_ONCE)
                except OSError as e:
                    if e.errno not in _UNAVAILABLE:
                        raise
            self._asked += 1
            if self._context is None:
                try:
                    os.fdatasync(self._fd)
                    self._ended(self._asked, 0)
                except OSError as e:
                    self._ended(self._asked, e.errno or errno.EIO)
            else:
                while not syscalls.io_submit_fdsync(self._context, self._fd, self._asked):
                    self._ended(*syscalls.io_getevent(self._context))
            return Saving(self, self._asked)

    def wait(self, number: int) -> None:
        """Wait for the one of this *number*."""
        from nativert.isolation import syscalls

        with self._mutex:
            # A later one has saved what was written before it, too.
            while self._saved < number:
                if self._failed >= number:
                    raise OSError(self._errno, os.strerror(self._errno), os.fspath(self._path))
                if self._context is None:
                    raise ValueError(f"{self._path} is closed")
                self._ended(*syscalls.io_getevent(self._context))

    def close(self) -> None:
        """Wait for what was asked for, and release what that needs; safe to call again."""
        from nativert.isolation import syscalls

        with self._mutex:
            if self._context is not None:
                syscalls.io_destroy(self._context)
                self._context = None
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _ended(self, number: int, error: int) -> None:
        if not error:
            self._saved = max(self._saved, number)
        elif number > self._failed:
            self._failed, self._errno = number, error
