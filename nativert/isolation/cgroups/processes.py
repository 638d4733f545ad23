"""The processes of a cgroup: who they are, and ending all of them."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from itertools import islice
from typing import Final

from nativert.isolation.cgroups import files
from nativert.isolation.cgroups.freezer import Freezer

# pidfds held at once; well below the usual soft limit of 1024 descriptors.
_BATCH: Final = 256


def pids(directory: str) -> list[int]:
    """Return the processes of a cgroup and of those below it; none if it does not exist."""
    found = own_pids(directory)
    for child in files.subdirectories(directory):
        found += pids(f"{directory}/{child}")
    return found


def own_pids(directory: str) -> list[int]:
    """Return the processes of a cgroup without those below it."""
    try:
        # Not files.read: the list may be longer than one read.
        with open(f"{directory}/cgroup.procs", "rb") as procs:
            listed = [int(line) for line in procs]
    except OSError as error:
        # ENODEV: removed between open and read.
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise
    # 0 is a process outside the reader's PID namespace: it cannot be signalled from here.
    return [pid for pid in listed if pid]


def kill(directory: str, freezer: Freezer) -> None:
    """Send SIGKILL to every process, then thaw; does not wait for their end.

    cgroup.kill is left alone: on Linux 6.18 a cgroup that was killed with it kills every
    process born into it later by clone3(CLONE_INTO_CGROUP), and this one is to be used again.
    Asking for the freeze first makes a fork bomb stand still: a child born meanwhile starts
    frozen, so that each round finds only what the one before had missed.
    """
    signalled: set[int] = set()
    if not os.path.isdir(directory):
        return
    freezer.request(frozen=True)
    try:
        while fresh := [pid for pid in pids(directory) if pid not in signalled]:
            signalled.update(fresh)
            remaining = iter(fresh)
            while batch := list(islice(remaining, _BATCH)):
                _kill_batch(directory, batch)
    finally:
        # Processes in the v1 freezer do not die before this.
        freezer.request(frozen=False)


def _kill_batch(directory: str, batch: list[int]) -> None:
    handles: dict[int, int] = {}
    try:
        # One by one: those that were opened before one that is refused are closed too.
        handles.update(_open(batch))
        # A pid may have been reused between the list and pidfd_open(2). What is listed
        # after it has been opened is either that process or, if reused, no longer it.
        members = set(pids(directory))
        for pid, fd in handles.items():
            if pid in members:
                try:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has ended by itself
    finally:
        for fd in handles.values():
            os.close(fd)


def _open(batch: list[int]) -> Iterator[tuple[int, int]]:
    for pid in batch:
        try:
            yield pid, os.pidfd_open(pid)
        except OSError as error:
            # It has ended by itself; its number may be a thread's by now.
            if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise
