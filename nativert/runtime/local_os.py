"""The host's own files and downloads: what `runtime.protocols.Os` asks for.

Refusals of the kernel stay `OSError`. Trees are walked by descriptors: an
instance wrote parts of them, so no name in them is followed through a link.
"""

from __future__ import annotations

import errno
import os
import stat
from itertools import islice
from pathlib import Path
from typing import Final

from nativert.isolation.syscalls import openat2
from nativert.runtime.protocols import DownloadLimits, Progress
from nativert.runtime.walk import BENEATH, DIRECTORY, walk

# Each level costs a descriptor and a frame; an instance may have nested thousands.
_LEVELS: Final = 32
_BATCH: Final = 4096


class LocalOs:
    """Files of the host that this process runs on."""

    def make_dir(
        self, path: Path, *, mode: int = 0o755, owner: tuple[int, int] | None = None
    ) -> None:
        """Make a directory, and those above it where they are missing; one that is there stays.

        Mode and owner are set in either case, whatever the umask is.
        """
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.mkdir(path, 0o700)
        fd = os.open(path, DIRECTORY)
        try:
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)

    def remove_tree(self, path: Path) -> None:
        """Remove whatever has this name; safe when absent.

        A link is removed, not followed. A mount beneath raises `OSError` with EXDEV or EBUSY.
        """
        try:
            parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            _remove(parent, path.name)
        except OSError as e:
            # The name alone, relative to a descriptor, would tell nobody where it is.
            raise OSError(e.errno, f"cannot remove {e.filename}: {e.strerror}", str(path)) from e
        finally:
            os.close(parent)

    def write_file(
        self, path: Path, data: bytes, *, mode: int = 0o644, owner: tuple[int, int] | None = None
    ) -> None:
        """Put a file in place at once: readers see the old one or the new one."""
        parent = os.open(path.parent, DIRECTORY)
        temporary = f".{path.name[:200]}.{os.urandom(6).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(temporary, flags, 0o600, dir_fd=parent)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                if owner is not None:
                    os.fchown(fd, *owner)
                os.fchmod(fd, mode)
                os.rename(temporary, path.name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                os.unlink(temporary, dir_fd=parent)
                raise
            finally:
                os.close(fd)
        finally:
            os.close(parent)

    def read_file(self, path: Path, *, limit: int = 1 << 20) -> bytes:
        """Return a whole regular file; a longer one raises `OSError` with EFBIG."""
        # O_NONBLOCK: a fifo in its place must not hang whoever reads.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            parts = []
            left = limit + 1
            while left and (data := os.read(fd, left)):
                parts.append(data)
                left -= len(data)
        finally:
            os.close(fd)
        if not left:
            raise OSError(errno.EFBIG, f"longer than {limit} bytes", str(path))
        return b"".join(parts)

    def exists(self, path: Path) -> bool:
        """Return whether something has this name; a dangling link counts."""
        return os.path.lexists(path)

    def chown_tree(self, path: Path, owner: tuple[int, int]) -> None:
        """Give a tree to (uid, gid); follows no link, raises `OSError` with EXDEV at a mount."""
        os.chown(path, *owner, follow_symlinks=False)
        for _, fd in walk(path):
            with os.scandir(fd) as entries:
                for entry in entries:
                    os.chown(entry.name, *owner, dir_fd=fd, follow_symlinks=False)

    def download(
        self, uri: str, target: Path, *, limits: DownloadLimits, progress: Progress | None
    ) -> None:
        """Fetch a file within the limits; raises `ImageError`, and then there is no `target`."""
        from nativert.runtime.download import download

        download(uri, target, limits=limits, progress=progress)

    def free_bytes(self, path: Path) -> int:
        """Return the bytes that an unprivileged user may still write there; see statvfs(3)."""
        room = os.statvfs(path)
        return room.f_bavail * room.f_frsize


def _remove(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        top = openat2(parent, name, DIRECTORY, 0, BENEATH)
        try:
            _empty(top, top, _LEVELS)
        finally:
            os.close(top)
        os.rmdir(name, dir_fd=parent)


def _empty(fd: int, top: int, levels: int) -> None:
    """Remove all in the directory `fd`; what is nested too deep moves up to `top` first."""
    while names := _some_names(fd):
        for name in names:
            try:
                os.unlink(name, dir_fd=fd)
            except IsADirectoryError:
                if not levels:
                    # `top` is read again until it is empty, so it comes round.
                    os.rename(name, os.urandom(12).hex(), src_dir_fd=fd, dst_dir_fd=top)
                    continue
                if _removed_empty(fd, name):
                    continue
                below = openat2(fd, name, DIRECTORY, 0, BENEATH)
                try:
                    _empty(below, top, levels - 1)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=fd)


def _removed_empty(fd: int, name: str) -> bool:
    # Most directories of an instance are.
    try:
        os.rmdir(name, dir_fd=fd)
    except OSError as e:
        # A mount, which is busy, is refused by who opens it.
        if e.errno not in (errno.ENOTEMPTY, errno.EBUSY):
            raise
        return False
    return True


def _some_names(fd: int) -> list[str]:
    # By batches: a directory may hold millions, and removing moves a reader's place.
    with os.scandir(fd) as entries:
        return [entry.name for entry in islice(entries, _BATCH)]
