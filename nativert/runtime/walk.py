"""Walking a tree that applications write to while it is walked.

No link is followed, nothing but a directory is opened, and nothing nested too deep: see
path_resolution(7) for what may take the place of what between two system calls.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nativert.isolation.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)

BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Another file has taken its place, or none.
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# Names of one call: PATH_MAX is 4096 bytes, a name has at most 255.
_AT_ONCE: Final = 15


def walk(top: Path) -> Iterator[tuple[str, int]]:
    """Yield each directory from *top* on: its path relative to it, "" first, and a descriptor.

    The descriptor is closed afterwards. What is no directory when its turn comes is left out.
    Raises OSError: EXDEV at a mount.
    """
    try:
        first = os.open(top, DIRECTORY)
    except OSError as e:
        if e.errno in _GONE:
            return
        raise
    try:
        waiting: list[tuple[str, ...]] = [()]
        while waiting:
            here = waiting.pop()
            try:
                fd = _enter(first, here)
            except OSError as e:
                if e.errno in _GONE:
                    continue
                raise
            try:
                yield "/".join(here), fd
                waiting += [(*here, name) for name in reversed(_directories(fd))]
            finally:
                os.close(fd)
    finally:
        os.close(first)


def _enter(first: int, way: tuple[str, ...]) -> int:
    fd = openat2(first, ".", DIRECTORY, 0, BENEATH)
    for start in range(0, len(way), _AT_ONCE):
        try:
            inner = openat2(fd, "/".join(way[start : start + _AT_ONCE]), DIRECTORY, 0, BENEATH)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _directories(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
