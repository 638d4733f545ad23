"""Usage counters of the v1 controllers; see cgroup-v1/memory.rst, blkio-controller.rst."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from nativert.isolation.cgroups import files
from nativert.isolation.cgroups.counters import Counters, field
from nativert.isolation.cgroups.limits import Usage

# The recursive twin appeared in 4.12; descendants count too.
_IO_BYTES: Final = "blkio.throttle.io_service_bytes_recursive"
_FILES: Final = {
    "cpu": ("cpuacct", "cpuacct.usage"),
    "throttling": ("cpu", "cpu.stat"),
    "memory": ("memory", "memory.usage_in_bytes"),
    "memory_stat": ("memory", "memory.stat"),
    "peak": ("memory", "memory.max_usage_in_bytes"),
    "oom": ("memory", "memory.oom_control"),
    "pids": ("pids", "pids.current"),
    "refused": ("pids", "pids.events"),
    "io": ("blkio", _IO_BYTES),
}
_READ: Final = re.compile(rb" Read (\d+)")
_WRITE: Final = re.compile(rb" Write (\d+)")


def path(directories: Mapping[str, str], name: str) -> str | None:
    """Return where a counter is, if its controller is mounted."""
    controller, file = _FILES[name]
    return f"{directories[controller]}/{file}" if controller in directories else None


class V1Sampler:
    """The counters of one v1 cgroup, kept open; *directories* by controller."""

    def __init__(self, directories: Mapping[str, str]) -> None:
        for directory in directories.values():
            os.stat(directory)  # a missing cgroup must not read as an idle one
        paths = {name: path(directories, name) for name in _FILES}
        self._counters = Counters({name: p for name, p in paths.items() if p is not None})

    def core(self) -> tuple[int, int, int]:
        """Return (cpu ns, memory bytes, tasks), the three cheapest counters."""
        number = self._counters.number
        return number("cpu") or 0, number("memory") or 0, number("pids") or 0

    def sample(self) -> Usage:
        """Return all counters; OSError(ENODEV) once the cgroup is removed."""
        cpu_ns, memory, pids = self.core()
        read = self._counters.read
        throttling, stat, io = read("throttling"), read("memory_stat"), read("io")
        return Usage(
            cpu_ns=cpu_ns,
            throttled_ns=field(throttling, b"throttled_time") or 0,
            throttled_periods=field(throttling, b"nr_throttled") or 0,
            memory_bytes=memory,
            working_set_bytes=_working_set(memory, stat),
            peak_bytes=self._counters.number("peak"),
            anon_bytes=field(stat, b"total_rss"),
            file_bytes=field(stat, b"total_cache"),
            swap_bytes=field(stat, b"total_swap"),
            pids=pids,
            io_read_bytes=sum(map(int, _READ.findall(io))),
            io_write_bytes=sum(map(int, _WRITE.findall(io))),
            oom_kills=field(read("oom"), b"oom_kill") or 0,
        )

    def close(self) -> None:
        """Close the descriptors; safe to call twice."""
        self._counters.close()


def working_set_bytes(directories: Mapping[str, str], above: int = 0) -> int:
    """Return the memory that the kernel does not give back on demand, 0 if not *above*.

    OSError without a cgroup.
    """
    directory = directories.get("memory")
    if directory is None:
        return 0
    memory = int(files.read(f"{directory}/memory.usage_in_bytes"))
    if memory <= above:
        return 0
    return _working_set(memory, files.read(f"{directory}/memory.stat").encode())


def _working_set(memory: int, stat: bytes) -> int:
    return max(memory - (field(stat, b"total_inactive_file") or 0), 0)
