"""What a cgroup is asked for and what it answers, free of any cgroup version.

Plain data only: the drivers turn it into interface files and back.
"""

from __future__ import annotations

import resource
from typing import Final

import msgspec

from nativert.isolation.cgroups import quota

_PAGE: Final = resource.getpagesize()


class IoLimit(msgspec.Struct, frozen=True):
    """Throttling of one block device ("major:minor", a whole disk); None = no limit.

    Bytes and operations per second. On v1 the kernel throttles reads and direct or
    synchronous writes only; buffered writes are attributed to the root cgroup.
    """

    device: str
    rbps: int | None = None
    wbps: int | None = None
    riops: int | None = None
    wiops: int | None = None


class Limits(msgspec.Struct, frozen=True):
    """Every limit of one cgroup; None = no limit, or the kernel's default."""

    cpu_max: float | None = None
    """Cores."""
    cpu_weight: int | None = None
    """1..10000 in the scale of v2 cpu.weight, 100 being the default."""
    cpuset: str | None = None
    """CPUs as a kernel list, "0-3,5"."""
    memory_max: int | None = None
    """Bytes; the kernel rounds down to pages."""
    memory_high: int | None = None
    """Bytes above which the kernel reclaims and slows down; v2 only."""
    memory_swap: int | None = None
    """Bytes of swap on top of the memory (v2 meaning)."""
    pids_max: int | None = None
    """Tasks, threads included."""
    io: tuple[IoLimit, ...] = ()

    def rounded(self) -> Limits:
        """Return what the kernel makes of them: pages, and whole microseconds of a period."""
        changes: dict[str, object] = {}
        if self.cpu_max is not None:
            changes["cpu_max"] = quota.to_cores(*quota.from_cores(self.cpu_max))
        for name in ("memory_max", "memory_high", "memory_swap"):
            value = getattr(self, name)
            if value is not None:
                changes[name] = value - value % _PAGE
        return msgspec.structs.replace(self, **changes)


class Usage(msgspec.Struct, frozen=True):
    """What a cgroup and all below it use, from the kernel's counters.

    None where this kernel keeps no such counter; counters typed int are 0 there.
    """

    cpu_ns: int
    throttled_ns: int
    throttled_periods: int
    memory_bytes: int
    working_set_bytes: int
    """memory_bytes without the inactive page cache, which the kernel gives back on demand."""
    peak_bytes: int | None
    anon_bytes: int | None
    file_bytes: int | None
    swap_bytes: int | None
    pids: int
    io_read_bytes: int
    io_write_bytes: int
    oom_kills: int


class Pressure(msgspec.Struct, frozen=True):
    """Share of the last 10 s in which some task waited for it, 0..1; None where unknown."""

    cpu: float | None = None
    memory: float | None = None
    io: float | None = None


class Entry(msgspec.Struct, frozen=True):
    """What a process needs in order to join a cgroup, and where the evidence of its end is.

    Plain paths, so that they can be sent to another process.
    """

    tasks: tuple[str, ...]
    """v1 `tasks` files. The single-threaded process itself writes "0": a pid written to
    cgroup.procs takes the write side of cgroup_threadgroup_rwsem and waits for RCU (7-12 ms)."""
    into: str | None
    """cgroup2 directory for clone3(CLONE_INTO_CGROUP)."""
    oom: str | None
    """memory.oom_control (v1) or memory.events (v2): a line "oom_kill N"."""
    peak: str | None
    """memory.max_usage_in_bytes (v1) or memory.peak (v2): bytes."""
    cpu: str | None
    """cpuacct.usage (v1, ns) or cpu.stat (v2, a line "usage_usec N")."""
    pids: str | None = None
    """pids.events: a line "max N", how often the limit refused a fork."""
