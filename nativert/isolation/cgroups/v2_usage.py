"""Usage counters of the v2 controllers; see cgroup-v2.rst."""

from __future__ import annotations

import os
import re
from typing import Final

from nativert.isolation.cgroups.counters import Counters, field
from nativert.isolation.cgroups.limits import Usage

_FILES: Final = {
    "cpu": "cpu.stat",
    "memory": "memory.current",
    "memory_stat": "memory.stat",
    "peak": "memory.peak",
    "swap": "memory.swap.current",
    "oom": "memory.events",
    "pids": "pids.current",
    "io": "io.stat",
}
_READ: Final = re.compile(rb" rbytes=(\d+)")
_WRITE: Final = re.compile(rb" wbytes=(\d+)")
_NS_PER_US: Final = 1000


class V2Sampler:
    """The counters of one v2 cgroup, kept open."""

    def __init__(self, directory: str) -> None:
        os.stat(directory)  # a missing cgroup must not read as an idle one
        self._counters = Counters({name: f"{directory}/{file}" for name, file in _FILES.items()})

    def core(self) -> tuple[int, int, int]:
        """Return (cpu ns, memory bytes, tasks), the three cheapest counters."""
        number = self._counters.number
        cpu_us = field(self._counters.read("cpu"), b"usage_usec") or 0
        return cpu_us * _NS_PER_US, number("memory") or 0, number("pids") or 0

    def sample(self) -> Usage:
        """Return all counters; OSError(ENODEV) once the cgroup is removed."""
        read, number = self._counters.read, self._counters.number
        cpu, stat, io = read("cpu"), read("memory_stat"), read("io")
        memory = number("memory") or 0
        return Usage(
            cpu_ns=(field(cpu, b"usage_usec") or 0) * _NS_PER_US,
            throttled_ns=(field(cpu, b"throttled_usec") or 0) * _NS_PER_US,
            throttled_periods=field(cpu, b"nr_throttled") or 0,
            memory_bytes=memory,
            working_set_bytes=_working_set(memory, stat),
            peak_bytes=number("peak"),
            anon_bytes=field(stat, b"anon"),
            file_bytes=field(stat, b"file"),
            swap_bytes=number("swap"),
            pids=number("pids") or 0,
            io_read_bytes=sum(map(int, _READ.findall(io))),
            io_write_bytes=sum(map(int, _WRITE.findall(io))),
            oom_kills=field(read("oom"), b"oom_kill") or 0,
        )

    def working_set_bytes(self, above: int = 0) -> int:
        """Return the memory that the kernel does not give back on demand, 0 if not *above*."""
        memory = self._counters.number("memory") or 0
        if memory <= above:
            return 0
        return _working_set(memory, self._counters.read("memory_stat"))

    def close(self) -> None:
        """Close the descriptors; safe to call twice."""
        self._counters.close()


def _working_set(memory: int, stat: bytes) -> int:
    return max(memory - (field(stat, b"inactive_file") or 0), 0)
