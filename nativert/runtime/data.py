"""What an application has written under /data, read from the host's side.

Names and links in there are the application's: nothing is followed, nothing is left.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nativert.runtime import beneath


def names(directory: Path, path: str) -> list[str]:
    """Return what a directory holds, sorted, a directory with a slash at its end."""
    found = beneath.find(directory, _relative(path), links=False)
    try:
        with os.scandir(f"/proc/self/fd/{found}/.") as entries:
            return sorted(
                f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                for entry in entries
            )
    finally:
        os.close(found)


def read(directory: Path, path: str, *, limit: int) -> bytes:
    """Return a regular file of at most *limit* bytes; EFBIG for a longer one."""
    found = beneath.find(directory, _relative(path), links=False)
    try:
        data = beneath.head(found, limit + 1)
    finally:
        os.close(found)
    if data is None:
        raise OSError(errno.EINVAL, "not a regular file", path)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"longer than {limit} bytes", path)
    return data


def _relative(path: str) -> str:
    if "\0" in path:
        raise OSError(errno.EINVAL, "not a path", path.replace("\0", "\\0"))
    below = path[len("/data") :] if path == "/data" or path.startswith("/data/") else path
    return below.lstrip("/")
