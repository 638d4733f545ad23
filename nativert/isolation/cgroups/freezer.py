"""Freezing and thawing through cgroup2 (cgroup.freeze) and through the v1 freezer.

See cgroup-v2.rst and freezer-subsystem.rst of the kernel.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Final

from nativert.isolation.cgroups import files

# Freezing takes 20-400 us: within this time yielding the CPU to the processes that have to
# stop is quicker than sleeping.
_YIELD_S: Final = 0.002
# The kernel delays notifications of cgroup.events that follow each other within 10 ms.
_POLL_SLICE_MS: Final = 10
_V1_SLEEP_S: Final = 0.001


class UnifiedFreezer:
    """The freezer of one cgroup2 directory, on a hybrid or a unified host.

    Processes frozen here still die of SIGKILL.
    """

    def __init__(self, directory: str) -> None:
        self._switch = f"{directory}/cgroup.freeze"
        self._events = f"{directory}/cgroup.events"

    def frozen(self) -> bool:
        """Whether every process is frozen."""
        return "\nfrozen 1" in f"\n{files.read(self._events)}"

    def request(self, *, frozen: bool) -> None:
        """Ask for a state without waiting for it."""
        files.write(self._switch, "1" if frozen else "0")

    def reach(self, *, frozen: bool, timeout_s: float) -> bytes | None:
        """Ask for a state, wait for it, and return cgroup.events; None when the time is over."""
        fd = os.open(self._events, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.request(frozen=frozen)
            wanted = b"\nfrozen 1" if frozen else b"\nfrozen 0"
            if wanted in (events := files.read_kept(fd)):
                return events  # Thawing, and an empty cgroup, take no time.
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            return _wait(
                lambda: events if wanted in (events := files.read_kept(fd)) else None,
                timeout_s,
                pause=lambda: poll.poll(_POLL_SLICE_MS),
            )
        finally:
            os.close(fd)


class LegacyFreezer:
    """The freezer of one directory of the v1 freezer hierarchy.

    Processes frozen here die of SIGKILL only when they are thawed.
    """

    def __init__(self, directory: str) -> None:
        self._state = f"{directory}/freezer.state"

    def frozen(self) -> bool:
        """Whether every process is frozen."""
        return files.read(self._state) == "FROZEN"

    def request(self, *, frozen: bool) -> None:
        """Ask for a state without waiting for it."""
        files.write(self._state, "FROZEN" if frozen else "THAWED")

    def reach(self, *, frozen: bool, timeout_s: float) -> bytes | None:
        """Ask for a state, wait for it, and return it; None when the time is over."""
        self.request(frozen=frozen)
        wanted = b"FROZEN" if frozen else b"THAWED"
        fd = os.open(self._state, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # There is no notification; the read itself makes the kernel look again.
            return _wait(
                lambda: wanted if files.read_kept(fd).strip() == wanted else None,
                timeout_s,
                pause=lambda: time.sleep(_V1_SLEEP_S),
            )
        finally:
            os.close(fd)


Freezer = UnifiedFreezer | LegacyFreezer


def freeze(freezer: Freezer, timeout_s: float) -> bool | None:
    """Freeze, or thaw again and raise TimeoutError: never leave half of them stopped.

    Returns whether a process is in the cgroup, None where the freezer does not tell.
    """
    reached = freezer.reach(frozen=True, timeout_s=timeout_s)
    if reached is None:
        freezer.request(frozen=False)
        raise TimeoutError(f"cannot freeze within {timeout_s:g} s: a process does not stop")
    return b"populated 1" in reached if isinstance(freezer, UnifiedFreezer) else None


def thaw(freezer: Freezer, timeout_s: float) -> None:
    """Thaw; TimeoutError if the kernel does not report it in time."""
    if freezer.reach(frozen=False, timeout_s=timeout_s) is None:
        raise TimeoutError(f"cannot thaw within {timeout_s:g} s")


def _wait(
    reached: Callable[[], bytes | None], timeout_s: float, *, pause: Callable[[], object]
) -> bytes | None:
    start = time.monotonic()
    # Reading comes first: most often the state is reached before anyone could notify.
    while (found := reached()) is None:
        elapsed = time.monotonic() - start
        if elapsed >= timeout_s:
            return None
        if elapsed < _YIELD_S:
            os.sched_yield()
        else:
            pause()
    return found
