"""Putting a file below an instance's /data: all of it or nothing, and the application's own.

It is received into a file without a name (O_TMPFILE, open(2)), for which the instance is not
locked, and gets its name at the end, under the lock: by then the instance may be gone, or on its
way to another node with the data that it had.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from nativert.errors import Code, NativertError, TransitionError
from nativert.fdu.states import allowed
from nativert.runtime import beneath, data
from nativert.runtime.context import Context
from nativert.runtime.hold import Holds
from nativert.runtime.observe import observe
from nativert.runtime.views import Entry
from nativert.store.durable import Row


def place(
    context: Context, holds: Holds, ref: str, path: str, pieces: Iterable[bytes], *, mode: int
) -> Entry:
    """Put *pieces* at *path*; what had this name, also a link, is replaced, but no directory."""
    row = context.store.find(ref)
    _refuse(context, row)
    directory = context.paths.instance_lib(row.uuid) / "data"
    where = data.below(path)
    with data.told(row.name, path):
        if not where or path.endswith("/"):
            raise IsADirectoryError(errno.EISDIR, "is a directory: name the file in it")
        if os.path.lexists(directory) or posixpath.dirname(where):
            # Before the whole of it has come in vain.
            os.close(_parent(directory, where))
        received = _Received(context.paths.lib / "i")
    with received:
        for piece in pieces:
            with data.told(row.name, path):
                received.write(piece)
        with data.told(row.name, path):
            os.fsync(received.fd)
        with holds.take(row.uuid):
            row = context.store.get(row.uuid)
            _refuse(context, row)
            with data.told(row.name, path):
                made = _make(context, row, directory)
                try:
                    received.name(directory, where, mode & data.MODES)
                except BaseException:
                    if made:
                        os.rmdir(directory)
                        _remove_empty(directory.parent)
                    raise
        return data.entry(posixpath.basename(where), os.fstat(received.fd))


def _refuse(context: Context, row: Row) -> None:
    if row.corrupt:
        raise NativertError(
            f"{row.name}: its record is damaged", code=Code.STORE, hint="nativert rm forgets it"
        )
    if row.moving is not None:
        state = observe(context, row).state
        raise TransitionError("put", state.value, allowed(state), name=row.name)


def _make(context: Context, row: Row, directory: Path) -> bool:
    if os.path.lexists(directory):
        return False
    context.os.make_dir(directory.parent, mode=0o700)
    # Who the application is may stand in an image that is not there: configure, which finds
    # another owner, gives it all to the right one.
    context.os.make_dir(directory, mode=0o750, owner=(row.id_range, row.id_range))
    return True


def _remove_empty(directory: Path) -> None:
    try:
        os.rmdir(directory)
    except OSError:
        pass  # It holds a log of an earlier life.


def _parent(directory: Path, where: str) -> int:
    """Return an O_PATH descriptor of the directory that *where* is in; EISDIR if it is one."""
    parent = beneath.find(directory, posixpath.dirname(where), links=False)
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        try:
            status = os.stat(posixpath.basename(where), dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return parent
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
    except BaseException:
        os.close(parent)
        raise
    return parent


class _Received:
    """A file without a name in *directory*, and how it gets one. A context manager."""

    def __init__(self, directory: Path) -> None:
        self._own: Path | None = None
        try:
            self.fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
                raise
            # A file system without them (overlayfs before 6.1, NFS). SIGKILL would leave this one.
            self._own = directory / f"put-{os.urandom(8).hex()}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(self._own, flags, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        if self._own is not None:
            os.unlink(self._own)

    def write(self, piece: bytes) -> None:
        """Append; ENOSPC already where only root's reserve is left, which others live on."""
        room = os.fstatvfs(self.fd)
        if room.f_blocks and room.f_bavail * room.f_frsize < len(piece):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = memoryview(piece)
        while view:
            view = view[os.write(self.fd, view) :]

    def name(self, top: Path, where: str, mode: int) -> None:
        """Give it the name *where* beneath *top*, and top's owner."""
        owner = os.lstat(top)
        os.fchown(self.fd, owner.st_uid, owner.st_gid)
        os.fchmod(self.fd, mode)
        parent = _parent(top, where)
        try:
            # link(2) replaces nothing, rename(2) does.
            temporary = f".put-{os.urandom(8).hex()}"
            os.link(f"/proc/self/fd/{self.fd}", temporary, dst_dir_fd=parent, follow_symlinks=True)
            try:
                target = posixpath.basename(where)
                os.rename(temporary, target, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                os.unlink(temporary, dir_fd=parent)
                raise
            os.fsync(self.fd)
            readable = os.open(f"/proc/self/fd/{parent}", os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(readable)
            finally:
                os.close(readable)
        finally:
            os.close(parent)
