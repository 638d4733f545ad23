"""What an application has under /data, reached from the host's side.

Names and links in there are the application's: no link is followed, nothing leads out, and nothing
but a regular file is opened. What the descriptor mounts below /data is seen inside only.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nativert.errors import Code, NativertError
from nativert.runtime import beneath
from nativert.runtime.views import Entry

CHUNK_BYTES: Final = 256 << 10
# What a file's mode may have: nobody needs set-uid, set-gid or sticky bits in data.
MODES: Final = 0o777

_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
_CODES: Final = {
    errno.ENOENT: Code.NOT_FOUND,
    errno.ENOTDIR: Code.NOT_FOUND,
    errno.EISDIR: Code.USAGE,
    errno.EINVAL: Code.USAGE,
    errno.EXDEV: Code.USAGE,
    errno.ELOOP: Code.USAGE,
    errno.ENAMETOOLONG: Code.USAGE,
    errno.ENOSPC: Code.NO_SPACE,
    errno.EDQUOT: Code.NO_SPACE,
}
_REASONS: Final = {
    errno.EXDEV: "leads out of /data",
    errno.ELOOP: "has a symbolic link in it, and none is followed",
}


@contextmanager
def told(name: str, path: str) -> Iterator[None]:
    """Tell a kernel's refusal with the instance's name, the path and what it means here."""
    try:
        yield
    except OSError as e:
        number = e.errno or 0
        reason = _REASONS.get(number) or (e.strerror or str(e)).rpartition("): ")[2]
        raise NativertError(
            f"{name}: {path or '/data'}: {reason}", code=_CODES.get(number, Code.FAILED)
        ) from e


def below(path: str) -> str:
    """Return *path* relative to /data, "" for /data itself; NativertError(USAGE) for no path."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise NativertError(f"{shown}: is not UTF-8", code=Code.USAGE) from None
    if "\0" in path:
        shown = path.replace("\0", "\\0")
        raise NativertError(f"{shown}: cannot be a path", code=Code.USAGE)
    relative = path[len("/data") :] if path == "/data" or path.startswith("/data/") else path
    # By its words: without links `a/..` is nothing, and the kernel need not find its way back up.
    normal = posixpath.normpath(relative.lstrip("/"))
    return "" if normal == "." else normal


def entries(directory: Path, path: str) -> Iterator[Entry]:
    """Yield what a directory holds, in its own order; of anything else that thing itself."""
    where = below(path)
    try:
        found = beneath.find(directory, where, links=False)
    except FileNotFoundError:
        if where or os.path.lexists(directory):
            raise
        return  # Never configured: there is nothing yet.
    try:
        status = os.fstat(found)
        if not stat.S_ISDIR(status.st_mode):
            yield entry(posixpath.basename(where), status)
            return
        with os.scandir(f"/proc/self/fd/{found}/.") as held:
            for one in held:
                try:
                    yield entry(one.name, one.stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue  # Removed meanwhile.
    finally:
        os.close(found)


def entry(name: str, status: os.stat_result) -> Entry:
    """Return a line of `ls`."""
    return Entry(
        name=os.fsencode(name).decode(errors="backslashreplace"),
        kind=_KINDS.get(stat.S_IFMT(status.st_mode), "other"),  # type: ignore[arg-type]
        size_bytes=status.st_size,
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        modified_at=status.st_mtime,
    )


def content(directory: Path, path: str) -> Iterator[bytes]:
    """Yield a regular file in pieces, as long as it was when it was opened."""
    found = beneath.find(directory, below(path), links=False)
    try:
        status = os.fstat(found)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        # Not blocking: a lease of the application's would hold us up; see fcntl(2).
        fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        left = status.st_size
        while left and (piece := os.read(fd, min(left, CHUNK_BYTES))):
            left -= len(piece)
            yield piece
    finally:
        os.close(fd)


def read(directory: Path, path: str, *, limit: int) -> bytes:
    """Return a regular file of at most *limit* bytes; EFBIG for a longer one."""
    parts = []
    size = 0
    for piece in content(directory, path):
        size += len(piece)
        if size > limit:
            raise OSError(errno.EFBIG, f"longer than {limit} bytes")
        parts.append(piece)
    return b"".join(parts)
