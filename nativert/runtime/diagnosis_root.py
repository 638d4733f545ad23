"""Files as one instance sees them, for finding out why its program did not run.

Through its init's root directory: mounts, links and tmpfs are those of the instance.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from nativert.isolation import process
from nativert.runtime import beneath

_ACL: Final = "system.posix_acl_access"


class Ids(NamedTuple):
    """The application's user as the host numbers it."""

    uid: int
    gid: int


class Root:
    """The root directory of an instance; *path* is where the host finds it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of_init(cls, pid: int | None, start: int | None) -> Root | None:
        """Return the root that a living init holds; None without one."""
        if pid is None or not process.alive(pid, start):
            return None
        return cls(Path(f"/proc/{pid}/root"))

    @contextmanager
    def found(self, path: str) -> Iterator[int]:
        """Hold an O_PATH descriptor of *path*; OSError where it cannot be found."""
        fd = beneath.find_in_root(self._path, path)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """Hold a regular file open for reading; OSError for anything else."""
        with self.found(path) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FileNotFoundError(2, "not a regular file", path)
            readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield readable
            finally:
                os.close(readable)

    def exists(self, path: str) -> bool:
        """Whether *path* leads to something."""
        try:
            with self.found(path):
                return True
        except OSError:
            return False

    def read(self, path: str, limit: int) -> bytes:
        """Return the first *limit* bytes of a file; nothing where it is not regular."""
        return beneath.read_in_root(self._path, path, limit=limit) or b""

    def names(self, path: str) -> list[str]:
        """Return the names in a directory; none where it is not one."""
        try:
            with self.found(path) as fd:
                return sorted(os.listdir(f"/proc/self/fd/{fd}"))
        except OSError:
            return []

    def first_missing(self, path: str) -> tuple[str, str]:
        """Return the first part of *path* that is not there, and where it leads if it is a link."""
        way = "/"
        for part in posixpath.normpath(f"/{path}").strip("/").split("/"):
            before, way = way, posixpath.join(way, part)
            if not self.exists(way):
                return way, self._link(before, part)
        return "", ""

    def _link(self, directory: str, name: str) -> str:
        try:
            with self.found(directory) as fd:
                return os.readlink(name, dir_fd=fd)
        except OSError:
            return ""

    def forbidden(self, path: str, ids: Ids) -> str:
        """Return why *ids* may not execute *path*, in words; "" where nothing here tells.

        Goes by modes and mount flags; where there is an access list, modes prove nothing.
        """
        parts = posixpath.normpath(f"/{path}").strip("/").split("/")
        for count in range(len(parts)):
            directory = "/" + "/".join(parts[:count])
            with self.found(directory) as fd:
                status = os.fstat(fd)
                if stat.S_ISDIR(status.st_mode) and _denied(fd, status, ids):
                    return f"the directory {directory} ({_told(status)}) may not be entered by it"
        with self.found(path) as fd:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                return "it is a directory"
            if not stat.S_ISREG(status.st_mode):
                return "it is not a regular file"
            if os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
                return "its file system is mounted noexec"
            if not status.st_mode & 0o111:
                return f"its mode is {_told(status)}: no x for anybody"
            if _denied(fd, status, ids):
                return f"its mode is {_told(status)}: no x for the application's user"
        return ""


def _denied(fd: int, status: os.stat_result, ids: Ids) -> bool:
    try:
        if os.getxattr(f"/proc/self/fd/{fd}", _ACL):
            return False
    except OSError:
        pass  # Without a list, or of a file system that has none: the mode decides.
    # inode(7): the first that fits decides, also when it gives less than the next.
    if status.st_uid == ids.uid:
        return not status.st_mode & stat.S_IXUSR
    if status.st_gid == ids.gid:
        return not status.st_mode & stat.S_IXGRP
    return not status.st_mode & stat.S_IXOTH


def _told(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
