"""The v1 interface files that carry limits.

cpu, cpuset and memory are read through cgroupspy's typed controller objects, each made for
one path, and cpuset is written so. cgroupspy has no pids controller and misspells two of the
four throttle files; and it opens files as text, which takes three times as long as one
write(2).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, Final

from nativert.isolation.cgroups import files, quota, weight
from nativert.isolation.cgroups.cpulist import format_list, parse_list
from nativert.isolation.cgroups.driver import UnenforceableError
from nativert.isolation.cgroups.knobs import EVERY, Knob
from nativert.isolation.cgroups.limits import IoLimit, Limits

Value = int | frozenset[int] | None

PERIOD: Final = Knob("cpu.cfs_period_us")
QUOTA: Final = Knob("cpu.cfs_quota_us")
SHARES: Final = Knob("cpu.shares")
CPUS: Final = Knob("cpuset.cpus")
MEMORY: Final = Knob("memory.limit_in_bytes")
MEMSW: Final = Knob("memory.memsw.limit_in_bytes")
PIDS: Final = Knob("pids.max")

# By the field of Limits that they carry; swap is limited together with the memory.
_KNOBS_OF: Final = {
    "cpu_max": (PERIOD, QUOTA),
    "cpu_weight": (SHARES,),
    "cpuset": (CPUS,),
    "memory_max": (MEMORY, MEMSW),
    "pids_max": (PIDS,),
}
_TYPED: Final = {
    PERIOD: ("cpu", "cfs_period_us"),
    QUOTA: ("cpu", "cfs_quota_us"),
    SHARES: ("cpu", "shares"),
    CPUS: ("cpuset", "cpus"),
    MEMORY: ("memory", "limit_in_bytes"),
    MEMSW: ("memory", "memsw_limit_in_bytes"),
}
# Absent without CONFIG_CFS_BANDWIDTH and without swap accounting.
_OPTIONAL: Final = frozenset({PERIOD, QUOTA, MEMSW})

THROTTLE: Final = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}
# "No limit" reads as the largest multiple of the page size in a long.
_NO_LIMIT_BYTES: Final = 1 << 62


def refuse_inexpressible(limits: Limits) -> None:
    """Raise UnenforceableError for what v1 has no interface file for."""
    if limits.memory_high is not None:
        raise UnenforceableError(
            "memory",
            "v1 has no counterpart of memory.high (soft_limit_in_bytes acts only when the "
            "whole host is short of memory)",
            "leave memory.high out, or boot with systemd.unified_cgroup_hierarchy=1",
        )
    if limits.memory_swap:
        refuse_swap_alone(limits)


def refuse_swap_alone(limits: Limits) -> None:
    """Raise UnenforceableError for a swap limit without a memory limit."""
    if limits.memory_max is None:
        raise UnenforceableError(
            "memory",
            "v1 limits memory and swap together, so swap alone cannot be limited",
            "set memory.max too, or leave memory.swap out",
        )


class _At:
    # All that a cgroupspy controller asks of a node; its own Node and Tree walk the hierarchy.
    def __init__(self, directory: str) -> None:
        self.full_path = os.fsencode(directory)


class V1Knobs:
    """The limit files of one v1 cgroup; *directories* by controller."""

    def __init__(self, directories: Mapping[str, str]) -> None:
        self._directories = directories
        self._controllers: dict[str, Any] = {}
        self._there: set[Knob] = set()

    def snapshot(self, which: frozenset[str] = EVERY) -> dict[Knob, Value]:
        """Read the limits of *which* fields; FileNotFoundError if the cgroup does not exist."""
        values: dict[Knob, Value] = {}
        for field, knobs in _KNOBS_OF.items():
            for knob in knobs if field in which else ():
                if knob.file.partition(".")[0] not in self._directories:
                    continue
                try:
                    values[knob] = self.get(knob)
                except FileNotFoundError:
                    if knob not in _OPTIONAL:
                        raise
        if "io" in which and "blkio" in self._directories:
            for file in THROTTLE.values():
                values |= {Knob(file, device): n for device, n in self._throttled(file).items()}
        return values

    def assume(self, limits: Limits, which: frozenset[str]) -> dict[Knob, Value]:
        """Return what `snapshot` returns where *limits* are in force, without reading it."""
        if which & {"io", "cpuset"}:
            return self.snapshot(which)
        quota_us, period_us = None, quota.PERIOD_US
        if limits.cpu_max is not None:
            quota_us, period_us = quota.from_cores(limits.cpu_max)
        shares = weight.SHARES_DEFAULT
        if limits.cpu_weight is not None:
            shares = weight.shares_from_weight(limits.cpu_weight)
        memory, swap = limits.memory_max, limits.memory_swap
        values: dict[Knob, Value] = {
            PERIOD: period_us,
            QUOTA: quota_us,
            SHARES: shares,
            MEMORY: memory,
            MEMSW: None if memory is None or swap is None else memory + swap,
            PIDS: limits.pids_max,
        }
        wanted = {knob for field in which for knob in _KNOBS_OF.get(field, ())}
        return {
            knob: value
            for knob, value in values.items()
            if knob in wanted
            and knob.file.partition(".")[0] in self._directories
            and (knob not in _OPTIONAL or self._exists(knob))
        }

    def _exists(self, knob: Knob) -> bool:
        # What this kernel has once it has always.
        if knob not in self._there and os.path.exists(self._path(knob)):
            self._there.add(knob)
        return knob in self._there

    def exact(self, knob: Knob) -> bool:
        """Whether a value reads as it was written: all but shares, CPU lists and devices."""
        return not knob.device and knob not in (SHARES, CPUS)

    def get(self, knob: Knob) -> Value:
        """Read one limit; None = no limit."""
        if knob.device:
            return self._throttled(knob.file).get(knob.device)
        if knob == PIDS:
            text = files.read(self._path(knob))
            return None if text == "max" else int(text)
        controller, attribute = _TYPED[knob]
        value = getattr(self._controller(controller), attribute)
        if knob == CPUS:
            return frozenset(value)
        number: int | None = value
        return None if number is not None and number >= _NO_LIMIT_BYTES else number

    def set(self, knob: Knob, value: Value) -> None:
        """Write one limit; OSError with path, value and reason if the kernel refuses."""
        if knob.device:
            files.write(self._path(knob), f"{knob.device} {value or 0}")
        elif isinstance(value, frozenset):
            controller, attribute = _TYPED[knob]
            try:
                # cgroupspy writes inside a with block, so that a refusal at close does
                # arrive here, but without the path.
                setattr(self._controller(controller), attribute, value)
            except OSError as error:
                raise files.refusal(error, format_list(value), self._path(knob)) from error
        else:
            no_limit = "max" if knob == PIDS else "-1"
            files.write(self._path(knob), no_limit if value is None else str(value))

    def plan(
        self, limits: Limits, before: dict[Knob, Value], which: frozenset[str] = EVERY
    ) -> list[tuple[Knob, Value]]:
        """Return the writes that lead to *limits*: those that may be refused come first."""
        refuse_inexpressible(limits)
        wanted: list[tuple[Knob, Value]] = []
        if "memory_max" in which:
            wanted += self._plan_memory(limits, before)
        if "cpuset" in which:
            if limits.cpuset is not None:
                wanted.append((CPUS, parse_list(limits.cpuset)))
            elif CPUS in before:
                wanted.append((CPUS, self._parent_cpus()))
        if "io" in which:
            wanted += self._plan_io(limits, before)
        if "cpu_max" in which:
            if limits.cpu_max is None:
                wanted.append((QUOTA, None))
                if PERIOD in before:
                    # A long one, of a small share, would stay, and be none of what is assumed.
                    wanted.append((PERIOD, quota.PERIOD_US))
            else:
                quota_us, period_us = quota.from_cores(limits.cpu_max)
                wanted += [(PERIOD, period_us), (QUOTA, quota_us)]
        if "cpu_weight" in which:
            if limits.cpu_weight is not None:
                wanted.append((SHARES, weight.shares_from_weight(limits.cpu_weight)))
            elif SHARES in before:
                wanted.append((SHARES, weight.SHARES_DEFAULT))
        if "pids_max" in which:
            wanted.append((PIDS, limits.pids_max))
        changes = [(knob, value) for knob, value in wanted if before.get(knob) != value]
        for knob, _ in changes:
            if knob not in before and not (knob.device and "blkio" in self._directories):
                raise FileNotFoundError(errno.ENOENT, "the kernel has no such limit", knob.file)
        return changes

    def limits(self, values: dict[Knob, Value]) -> Limits:
        """Translate interface file values into limits."""
        numbers = {k: v for k, v in values.items() if isinstance(v, int)}
        memory, memsw = numbers.get(MEMORY), numbers.get(MEMSW)
        quota_us, shares = numbers.get(QUOTA), numbers.get(SHARES)
        cpus = values.get(CPUS)
        return Limits(
            cpu_max=None if quota_us is None else quota.to_cores(quota_us, numbers[PERIOD]),
            cpu_weight=None
            if shares in (None, weight.SHARES_DEFAULT)
            else weight.weight_from_shares(shares),
            cpuset=format_list(cpus)
            if isinstance(cpus, frozenset) and cpus != self._parent_cpus()
            else None,
            memory_max=memory,
            memory_swap=None if memory is None or memsw is None else memsw - memory,
            pids_max=numbers.get(PIDS),
            io=_io_limits(numbers),
        )

    def _plan_memory(self, limits: Limits, before: dict[Knob, Value]) -> list[tuple[Knob, Value]]:
        memory = limits.memory_max
        memsw = None
        if memory is not None and limits.memory_swap is not None:
            memsw = memory + limits.memory_swap
        if MEMSW not in before:
            # Without swap accounting only "no swap" can hold, on a host that has none.
            return [(MEMORY, memory)] if not limits.memory_swap else [(MEMSW, memsw)]
        old = before[MEMSW]
        # The kernel keeps memory <= memsw at every step.
        if memsw is None or (isinstance(old, int) and memsw >= old):
            return [(MEMSW, memsw), (MEMORY, memory)]
        return [(MEMORY, memory), (MEMSW, memsw)]

    def _plan_io(self, limits: Limits, before: dict[Knob, Value]) -> list[tuple[Knob, Value]]:
        wanted: dict[Knob, Value] = {knob: None for knob in before if knob.device}
        for limit in limits.io:
            for field, file in THROTTLE.items():
                wanted[Knob(file, limit.device)] = getattr(limit, field)
        return list(wanted.items())

    def _throttled(self, file: str) -> dict[str, int]:
        text = files.read_optional(self._path(Knob(file))) or ""
        pairs = (line.split() for line in text.splitlines())
        return {device: int(number) for device, number in pairs}

    def _parent_cpus(self) -> frozenset[int]:
        return parse_list(files.read(f"{os.path.dirname(self._directories['cpuset'])}/cpuset.cpus"))

    def _controller(self, name: str) -> Any:
        if name not in self._controllers:
            from cgroupspy import controllers

            kind = {
                "cpu": controllers.CpuController,
                "cpuset": controllers.CpuSetController,
                "memory": controllers.MemoryController,
            }[name]
            self._controllers[name] = kind(_At(self._directories[name]))
        return self._controllers[name]

    def _path(self, knob: Knob) -> str:
        return f"{self._directories[knob.file.partition('.')[0]]}/{knob.file}"


def _io_limits(numbers: Mapping[Knob, int]) -> tuple[IoLimit, ...]:
    devices = sorted({knob.device for knob in numbers if knob.device})
    return tuple(
        IoLimit(device, **{f: numbers.get(Knob(file, device)) for f, file in THROTTLE.items()})
        for device in devices
    )
