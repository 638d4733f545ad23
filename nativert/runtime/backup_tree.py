"""Writing the members of a backup below one directory, and nowhere else.

No link is followed on the way, whoever made it; owner, mode and time are the member's.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """A directory to fill; *owner* gives the number that an owner or group has here."""

    def __init__(self, top: Path, *, owner: Callable[[int], int]) -> None:
        self._top = os.open(top, _DIRECTORY)
        self._owner = owner
        self._directories: list[tarfile.TarInfo] = []

    def put(self, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        """Make one member, and the directories that lead to it; OSError, FileExistsError."""
        *way, name = member.name.split("/")
        parent = self._enter(way)
        try:
            if member.isdir():
                try:
                    os.mkdir(name, 0o700, dir_fd=parent)
                except FileExistsError:
                    pass
                # Its mode may forbid to write into it, and its time changes until the end.
                self._directories.append(member)
                return
            if member.issym():
                os.symlink(member.linkname, name, dir_fd=parent)
            elif member.isfifo():
                os.mkfifo(name, 0o600, dir_fd=parent)
            elif content is not None:
                fd = os.open(name, _NEW, 0o600, dir_fd=parent)
                with open(fd, "wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
            self._dress(member, name, parent)
        finally:
            os.close(parent)

    def finish(self) -> None:
        """Give the directories their owners, modes and times, the deepest first."""
        for member in reversed(self._directories):
            *way, name = member.name.split("/")
            parent = self._enter(way)
            try:
                self._dress(member, name, parent)
            finally:
                os.close(parent)

    def close(self) -> None:
        """Give the directory back."""
        os.close(self._top)

    def _enter(self, way: list[str]) -> int:
        fd = os.dup(self._top)
        for part in way:
            try:
                try:
                    inner = os.open(part, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(part, 0o700, dir_fd=fd)
                    inner = os.open(part, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _dress(self, member: tarfile.TarInfo, name: str, parent: int) -> None:
        owner, group = self._owner(member.uid), self._owner(member.gid)
        os.chown(name, owner, group, dir_fd=parent, follow_symlinks=False)
        if not member.issym():
            # After the owner: chown takes set-uid bits away.
            os.chmod(name, member.mode, dir_fd=parent)
        os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)
