"""Interface files that are read again and again through descriptors that stay open."""

from __future__ import annotations

import os
from collections.abc import Mapping

from nativert.isolation.cgroups import files


class Counters:
    """Opens each file at its first reading, so that unread ones cost no descriptor.

    *paths* by the name used for reading; a file that does not exist reads as empty.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths
        self._fds: dict[str, int | None] = {}

    def read(self, name: str) -> bytes:
        """Return the present content; OSError(ENODEV) once the cgroup is removed."""
        try:
            fd = self._fds[name]
        except KeyError:
            path = self._paths.get(name)
            fd = self._fds[name] = None if path is None else files.open_optional(path)
        return b"" if fd is None else files.read_kept(fd)

    def number(self, name: str) -> int | None:
        """Return the content of a single-value file; None if it does not exist."""
        content = self.read(name)
        return int(content) if content else None

    def close(self) -> None:
        """Close the descriptors; safe to call twice."""
        while self._fds:
            _, fd = self._fds.popitem()
            if fd is not None:
                os.close(fd)


def field(content: bytes, key: bytes) -> int | None:
    """Return one value of a flat keyed file ("key value" lines); None without such a key."""
    # Searching is quicker than splitting memory.stat's 40 lines.
    if content.startswith(key + b" "):
        start = len(key) + 1
    else:
        found = content.find(b"\n" + key + b" ")
        if found < 0:
            return None
        start = found + len(key) + 2
    end = content.find(b"\n", start)
    return int(content[start:] if end < 0 else content[start:end])
