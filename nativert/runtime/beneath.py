"""Files that an image or an application has written, looked at from the host's side.

Their names and links are somebody else's: nothing is followed out of the directory that
was given, nothing but a regular file is opened, and no fifo or device makes anybody wait.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nativert.isolation.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)


def find(directory: Path, path: str, *, links: bool) -> int:
    """Return an O_PATH descriptor of *path* beneath *directory*; the caller closes it.

    Raises OSError: EXDEV for a link that leads out, with *links* false ELOOP for any link, and
    ENOTDIR where *directory* is one.
    """
    rules = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | (0 if links else RESOLVE_NO_SYMLINKS)
    return _resolve(directory, path, rules, 0 if links else os.O_DIRECTORY | os.O_NOFOLLOW)


def find_in_root(root: Path, path: str) -> int:
    """Return an O_PATH descriptor of *path*, its links resolved as if *root* were /.

    The caller closes it. Raises OSError as openat2(2) does.
    """
    return _resolve(root, path, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def read_in_root(root: Path, path: str, *, limit: int = 1 << 20) -> bytes | None:
    """Return the first *limit* bytes of a regular file, its links resolved as if *root* were /.

    None if there is no such file.
    """
    try:
        fd = find_in_root(root, path)
    except OSError:
        return None
    try:
        return head(fd, limit)
    finally:
        os.close(fd)


def head(fd: int, limit: int) -> bytes | None:
    """Return the first *limit* bytes of what an O_PATH descriptor names; None if not regular."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    with open(f"/proc/self/fd/{fd}", "rb") as file:
        return file.read(limit)


def _resolve(directory: Path, path: str, rules: int, flags: int = 0) -> int:
    top = os.open(directory, os.O_PATH | os.O_CLOEXEC | flags)
    try:
        return openat2(top, path.lstrip("/") or ".", os.O_PATH, 0, rules)
    finally:
        os.close(top)
