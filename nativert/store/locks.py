"""Locks between processes, and between threads: flock(2) on files in run.

The kernel drops a lock with its holder, however that ended. Each acquisition opens the
file anew, so two threads of one process exclude each other as two processes do.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from nativert.errors import Code, NativertError
from nativert.store.paths import Paths


class Lock:
    """One lock on *path*; `with` waits for at most *timeout_s* (None: for ever).

    It excludes every other holder, or with *shared* only those that do not share it.

    An object is for one thread; another thread makes its own.
    """

    def __init__(
        self, path: Path, *, what: str = "", timeout_s: float | None = None, shared: bool = False
    ) -> None:
        self.path = path
        self._operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._what = what or str(path)
        self._timeout_s = timeout_s
        self._fd: int | None = None
        self._kept = False
        self._token = b""

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None and not self._kept

    def acquire(self) -> None:
        """Wait for the lock; NativertError(TIMEOUT) names the holder where it is known."""
        if self.try_acquire():
            return
        if self._timeout_s is None:
            self._fd = _wait(self.path, self._operation)
            return
        # The wait is a thread in the kernel's queue, not a poll: who comes first is served
        # first, and a holder that takes the lock again at once cannot starve the others.
        waiter = _Waiter(self.path, self._operation)
        self._fd = waiter.result(self._timeout_s)
        if self._fd is None:
            pid = holder(self.path)
            by = f" held by process {pid}" if pid else " busy"
            raise NativertError(
                f"{self._what}:{by} for {self._timeout_s:g} s",
                code=Code.TIMEOUT,
                hint="try again when the other operation has ended",
            )

    def busy(self) -> bool:
        """Tell whether somebody holds the lock now; no file is made for the question."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, self._operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def try_acquire(self) -> bool:
        """Take the lock if it is free; return whether it was."""
        if self._fd is not None:
            raise RuntimeError(f"{self.path}: this object holds the lock already")
        self._fd = _take(self.path, self._operation | fcntl.LOCK_NB)
        return self._fd is not None

    def keep(self, token: bytes) -> None:
        """Give the lock back with *token* in its file, which stays open for `retake`."""
        if self._fd is None:
            raise RuntimeError(f"{self.path}: only the holder may keep it")
        if token != self._token:
            os.pwrite(self._fd, token, 0)
            self._token = token
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._kept = True

    def retake(self) -> bool:
        """Take the lock again if nobody has held it since `keep`; else close it: False."""
        fd = self._fd
        if fd is None or not self._kept:
            raise RuntimeError(f"{self.path}: was not kept")
        try:
            fcntl.flock(fd, self._operation | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        # A file without a name is not the one that others lock.
        if os.pread(fd, len(self._token) + 1, 0) == self._token and os.fstat(fd).st_nlink:
            self._kept = False
            return True
        self.release()
        return False

    def release(self) -> None:
        """Give the lock back; safe to call again."""
        self._kept, self._token = False, b""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def forget(self) -> None:
        """Remove the file and give the lock back: what it guarded is no more.

        Whoever waits on the old file notices and goes on with a new one.
        """
        if self._fd is None:
            raise RuntimeError(f"{self.path}: only the holder may remove it")
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        self.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class InstanceLock(Lock):
    """Serialises the operations on one instance, for the length of one operation."""

    def __init__(self, paths: Paths, uuid: str, *, timeout_s: float | None = None) -> None:
        super().__init__(paths.instance_lock(uuid), what=uuid, timeout_s=timeout_s)


class NodeLock(Lock):
    """A lock of the whole node by *name*, such as ``agent`` or ``launcher``."""

    def __init__(
        self, paths: Paths, name: str, *, timeout_s: float | None = None, shared: bool = False
    ) -> None:
        path = paths.run / f"{name}.lock"
        super().__init__(path, what=f"the node's {name} lock", timeout_s=timeout_s, shared=shared)


def holder(path: Path) -> int | None:
    """Return the pid that holds the flock on *path*, where /proc/locks tells; see proc(5)."""
    try:
        inode = str(os.stat(path).st_ino)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # "1: FLOCK  ADVISORY  WRITE 812 fe:00:1234 0 EOF"; a waiter's line has "->" second.
        # The device is not compared: btrfs and overlayfs show another one in stat(2).
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode:
            pid = int(fields[4])
            return pid if pid > 0 else None
    return None


def _take(path: Path, operation: int) -> int | None:
    """Open and flock *path*; None when LOCK_NB finds it held."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, operation)
            # The holder before us may have unlinked the file between our open and our lock;
            # the next one would then lock a new file beside ours.
            try:
                ours = os.fstat(fd)
                if os.path.samestat(ours, os.stat(path)):
                    if ours.st_size:
                        # Whoever kept it learns so that somebody has held it since.
                        os.ftruncate(fd, 0)
                    return fd
            except FileNotFoundError:
                pass
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _wait(path: Path, operation: int) -> int:
    fd = _take(path, operation)
    if fd is None:
        raise AssertionError("a blocking flock answered that it would block")
    return fd


class _Waiter:
    """A thread that waits for the lock and gives it back if nobody wants it any more."""

    def __init__(self, path: Path, operation: int) -> None:
        self._path = path
        self._operation = operation
        self._mutex = threading.Lock()
        self._done = threading.Event()
        self._wanted = True
        self._fd: int | None = None
        self._error: OSError | None = None
        threading.Thread(target=self._run, name=f"lock {path.name}", daemon=True).start()

    def _run(self) -> None:
        try:
            fd = _wait(self._path, self._operation)
        except OSError as e:
            self._error = e
        else:
            with self._mutex:
                if self._wanted:
                    self._fd = fd
                else:
                    os.close(fd)
        self._done.set()

    def result(self, timeout_s: float) -> int | None:
        try:
            self._done.wait(timeout_s)
        except BaseException:
            # Ctrl-C while waiting: the lock must not stay with a thread that nobody asks.
            with self._mutex:
                self._wanted = False
                fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)
            raise
        with self._mutex:
            self._wanted = False
            if self._error is not None:
                raise self._error
            fd, self._fd = self._fd, None
        return fd
