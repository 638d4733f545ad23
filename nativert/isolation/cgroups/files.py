"""Reading and writing single interface files, and making and removing cgroup directories.

Errors stay OSError; their text carries the value, the reason and the path.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Sequence
from typing import Final

# The largest file read here is memory.stat, about 4 kB; io.stat grows with the devices.
_READ_BYTES: Final = 65536
_REMOVE_DEADLINE_S: Final = 1.0
_BACKOFF_FIRST_S: Final = 0.0005
_BACKOFF_LAST_S: Final = 0.02


def refusal(error: OSError, value: object, path: str) -> OSError:
    """Return the kernel's refusal of *value* with path, value and reason in its text."""
    number = error.errno or 0
    return OSError(number, f"write {value!r}: {os.strerror(number)}", path)


def write(path: str, value: str) -> None:
    """Write one value to an interface file such as ``memory.max``.

    The kernel parses each write(2) on its own, so the value goes out in a single unbuffered
    one; a buffered file would report the refusal at close, if at all.
    """
    try:
        # Not O_CREAT: a missing file means that the controller is not enabled here.
        # cgroupfs ignores O_TRUNC; a plain file in its place loses the old, longer value.
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise refusal(error, value, path) from error


def read(path: str) -> str:
    """Read an interface file, without the trailing newline; OSError carries the path."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _READ_BYTES).decode().rstrip("\n")
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from error
    finally:
        os.close(fd)


def read_optional(path: str) -> str | None:
    """Read an interface file that this kernel or this cgroup may not have."""
    try:
        return read(path)
    except FileNotFoundError:
        return None


def open_optional(path: str) -> int | None:
    """Open an interface file for reading and keep it open; None if it does not exist."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def read_kept(fd: int) -> bytes:
    """Read a kept descriptor anew: 1.4 us, where open, read and close take 10.

    OSError(ENODEV) once the cgroup is gone.
    """
    return os.pread(fd, _READ_BYTES, 0)


def make_dir(path: str) -> None:
    """Make one cgroup; see mkdir(2) and cgroups(7)."""
    os.mkdir(path, 0o755)


def remove_dir(path: str) -> None:
    """Remove one cgroup; EBUSY while a process or a child is in it."""
    os.rmdir(path)


def subdirectories(path: str) -> list[str]:
    """Return the names of the child cgroups; none if the cgroup does not exist."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def make_all(paths: Sequence[str]) -> None:
    """Make every directory, or none."""
    made: list[str] = []
    try:
        for path in paths:
            make_dir(path)
            made.append(path)
    except OSError:
        for path in reversed(made):
            remove_dir(path)
        raise


def remove_all(
    paths: Iterable[str], *, nested: bool = True, deadline_s: float = _REMOVE_DEADLINE_S
) -> None:
    """Remove cgroups, and what is *nested* in them; those that are gone already are no error.

    A dead process keeps its cgroup busy until the kernel has finished with it, so EBUSY is
    tried again until one deadline for all. The others are removed even if one stays;
    the first OSError is then raised, the rest are its notes.
    """
    limit = time.monotonic() + deadline_s
    failures: list[OSError] = []
    for path in paths:
        try:
            _remove(path, limit, nested=nested)
        except OSError as error:
            failures.append(error)
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"also: {other}")
        raise failures[0]


def _remove(path: str, limit: float, *, nested: bool) -> None:
    pause_s = _BACKOFF_FIRST_S
    while True:
        try:
            remove_dir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            # EBUSY also says that there are children.
            children = subdirectories(path) if nested else []
            if not children and time.monotonic() >= limit:
                raise
        if children:
            for child in children:
                _remove(f"{path}/{child}", limit, nested=True)
            nested = False  # whoever makes new ones meanwhile has to stop first
        else:
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _BACKOFF_LAST_S)
