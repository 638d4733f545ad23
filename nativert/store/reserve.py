"""Room kept for a full disk: what ends an instance must still be noted then.

A file beside the store, given up when SQLite finds no space, and made again by whoever
opens the store once there is plenty. Only what releases something may use it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BYTES: Final = 1 << 20
_PLENTY_BYTES: Final = 16 << 20


def path_of(store: Path) -> Path:
    """Return the file that is kept beside *store*."""
    return store.with_name("reserve")


def keep(store: Path) -> None:
    """Make the reserve unless it is there or the disk is nearly full."""
    path = path_of(store)
    if os.path.lexists(path):
        return
    free = os.statvfs(store.parent)
    if free.f_bavail * free.f_frsize < _PLENTY_BYTES:
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return  # Another command was quicker, or the disk filled up meanwhile.
    try:
        os.posix_fallocate(fd, 0, _BYTES)
    except OSError:
        os.unlink(path)
    finally:
        os.close(fd)


def give_up(store: Path) -> bool:
    """Free the reserve; False if there was none."""
    try:
        os.unlink(path_of(store))
    except OSError:
        return False
    return True
