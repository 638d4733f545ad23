"""Writing the members of a backup below one directory, and nowhere else.

No link is followed on the way, whoever made it; owner, mode and time are the member's.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHER: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE: Final = 1 << 20
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
                owner, group = self._owners(member)
                os.chown(name, owner, group, dir_fd=parent, follow_symlinks=False)
                times = (member.mtime, member.mtime)
                os.utime(name, times, dir_fd=parent, follow_symlinks=False)
            elif member.isfifo():
                os.mkfifo(name, 0o600, dir_fd=parent)
                self._dress(member, os.open(name, _OTHER, dir_fd=parent), stat.S_ISFIFO)
            elif content is not None:
                fd = os.open(name, _NEW, 0o600, dir_fd=parent)
                try:
                    with open(fd, "wb", closefd=False) as file:
                        _fill(file, member, content)
                except BaseException:
                    os.close(fd)  # Else it would keep its room when its name is gone.
                    raise
                self._dress(member, fd, stat.S_ISREG)
        finally:
            os.close(parent)

    def finish(self) -> None:
        """Give the directories their owners, modes and times, the deepest first."""
        for member in reversed(self._directories):
            self._dress(member, self._enter(member.name.split("/")), stat.S_ISDIR)

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

    def _owners(self, member: tarfile.TarInfo) -> tuple[int, int]:
        return self._owner(member.uid), self._owner(member.gid)

    def _dress(self, member: tarfile.TarInfo, fd: int, is_kind: Callable[[int], bool]) -> None:
        """Give what is open as *fd* its owner, mode and time, and close it.

        By the descriptor: somebody inside may have given the name to something else.
        """
        try:
            if not is_kind(os.fstat(fd).st_mode):
                raise OSError(errno.ESTALE, "another file has taken its place", member.name)
            # Also of one that is open by O_PATH, whose descriptor itself cannot be told to.
            path = f"/proc/self/fd/{fd}"
            os.chown(path, *self._owners(member))
            # After the owner: chown takes set-uid bits away.
            os.chmod(path, member.mode)
            os.utime(path, (member.mtime, member.mtime))
        finally:
            os.close(fd)


def _fill(file: IO[bytes], member: tarfile.TarInfo, content: IO[bytes]) -> None:
    # Of another type than the stubs say: pairs of numbers.
    parts: Any = member.sparse
    if parts is None:
        shutil.copyfileobj(content, file, _PIECE)
        return
    for offset, size in parts:
        if not 0 <= offset <= offset + size <= member.size:
            raise OSError(errno.EINVAL, "its map of holes is none", member.name)
        content.seek(offset)
        file.seek(offset)
        left = size
        while left and (piece := content.read(min(left, _PIECE))):
            file.write(piece)
            left -= len(piece)
    file.truncate(member.size)
