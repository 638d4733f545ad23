"""The v2 interface files that carry limits; values are the text the kernel prints."""

from __future__ import annotations

import errno
import os
from typing import Final

from nativert.isolation.cgroups import files, quota, weight
from nativert.isolation.cgroups.knobs import EVERY, Knob
from nativert.isolation.cgroups.limits import IoLimit, Limits

CPU: Final = Knob("cpu.max")
WEIGHT: Final = Knob("cpu.weight")
CPUS: Final = Knob("cpuset.cpus")
MEMORY: Final = Knob("memory.max")
HIGH: Final = Knob("memory.high")
SWAP: Final = Knob("memory.swap.max")
PIDS: Final = Knob("pids.max")
IO_FILE: Final = "io.max"
_KNOB_OF: Final = {
    "cpu_max": CPU,
    "cpu_weight": WEIGHT,
    "cpuset": CPUS,
    "memory_max": MEMORY,
    "memory_high": HIGH,
    "memory_swap": SWAP,
    "pids_max": PIDS,
}
_IO_FIELDS: Final = ("rbps", "wbps", "riops", "wiops")
_IO_FREE: Final = "rbps=max wbps=max riops=max wiops=max"


class V2Knobs:
    """The limit files of one v2 cgroup."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def snapshot(self, which: frozenset[str] = EVERY) -> dict[Knob, str]:
        """Read what is enabled of *which* limits; FileNotFoundError without the cgroup."""
        os.stat(self._directory)  # a missing cgroup must not read as an unlimited one
        values = {
            knob: text
            for field, knob in _KNOB_OF.items()
            if field in which and (text := files.read_optional(self._path(knob))) is not None
        }
        if "io" not in which:
            return values
        return values | {Knob(IO_FILE, device): line for device, line in self._throttled().items()}

    def assume(self, limits: Limits, which: frozenset[str]) -> dict[Knob, str]:  # noqa: ARG002
        """Read them all the same: which files there are is the kernel's to say."""
        return self.snapshot(which)

    def get(self, knob: Knob) -> str:
        """Read one limit as the kernel prints it."""
        if knob.device:
            return self._throttled().get(knob.device, _IO_FREE)
        return files.read(self._path(knob))

    def exact(self, knob: Knob) -> bool:
        """Whether a value reads as it was written: all but CPU lists and devices."""
        return not knob.device and knob != CPUS

    def set(self, knob: Knob, value: str) -> None:
        """Write one limit; OSError with path, value and reason if the kernel refuses."""
        text = f"{knob.device} {value}" if knob.device else value
        # An empty write never reaches the controller; a newline empties cpuset.cpus.
        files.write(self._path(knob), text or "\n")

    def plan(
        self, limits: Limits, before: dict[Knob, str], which: frozenset[str] = EVERY
    ) -> list[tuple[Knob, str]]:
        """Return the writes that lead to *limits*: those that may be refused come first."""
        wanted: list[tuple[Knob, str]] = []
        if "cpuset" in which and (limits.cpuset is not None or CPUS in before):
            wanted.append((CPUS, limits.cpuset or ""))
        if "io" in which:
            wanted += self._plan_io(limits, before)
        if "memory_max" in which:
            wanted += self._plan_memory(limits, before)
        if "cpu_max" in which:
            _, _, period = before.get(CPU, f"max {quota.PERIOD_US}").partition(" ")
            if limits.cpu_max is not None:
                wanted.append((CPU, "{} {}".format(*quota.from_cores(limits.cpu_max))))
            else:
                wanted.append((CPU, f"max {period}"))
        if "cpu_weight" in which:
            share = limits.cpu_weight
            wanted.append((WEIGHT, str(weight.WEIGHT_DEFAULT if share is None else share)))
        if "pids_max" in which:
            wanted.append((PIDS, _text(limits.pids_max)))
        changes: list[tuple[Knob, str]] = []
        reached: dict[Knob, str] = dict(before)
        for knob, value in wanted:
            # memory.high may be written twice, so compare with what it will be by then.
            if reached.get(knob) != value and self._settable((knob, value), before):
                changes.append((knob, value))
                reached[knob] = value
        return changes

    def limits(self, values: dict[Knob, str]) -> Limits:
        """Translate interface file values into limits."""
        quota_us, _, period_us = values.get(CPU, "max").partition(" ")
        share = int(values.get(WEIGHT, weight.WEIGHT_DEFAULT))
        return Limits(
            cpu_max=None if quota_us == "max" else quota.to_cores(int(quota_us), int(period_us)),
            cpu_weight=None if share == weight.WEIGHT_DEFAULT else share,
            cpuset=values.get(CPUS) or None,
            memory_max=_number(values.get(MEMORY)),
            memory_high=_number(values.get(HIGH)),
            memory_swap=_number(values.get(SWAP)),
            pids_max=_number(values.get(PIDS)),
            io=tuple(
                _io_limit(knob.device, line)
                for knob, line in sorted(values.items())
                if knob.device and line != _IO_FREE
            ),
        )

    def _plan_memory(self, limits: Limits, before: dict[Knob, str]) -> list[tuple[Knob, str]]:
        writes: list[tuple[Knob, str]] = []
        maximum = limits.memory_max
        if maximum is not None and HIGH in before:
            usage = files.read_optional(f"{self._directory}/memory.current")
            if usage is not None and int(usage) > maximum:
                # Below the present use memory.max reclaims a little and then kills;
                # memory.high first reclaims as long as it makes progress.
                writes.append((HIGH, str(maximum)))
        writes.append((MEMORY, _text(maximum)))
        swap_matters = bool(limits.memory_swap) or SWAP in before
        if swap_matters:
            writes.append((SWAP, _text(limits.memory_swap)))
        writes.append((HIGH, _text(limits.memory_high)))
        return writes

    def _plan_io(self, limits: Limits, before: dict[Knob, str]) -> list[tuple[Knob, str]]:
        wanted = {knob: _IO_FREE for knob in before if knob.device}
        for limit in limits.io:
            wanted[Knob(IO_FILE, limit.device)] = " ".join(
                f"{field}={_text(getattr(limit, field))}" for field in _IO_FIELDS
            )
        return list(wanted.items())

    def _settable(self, change: tuple[Knob, str], before: dict[Knob, str]) -> bool:
        knob, value = change
        if knob in before or knob.device:
            return True
        # What is not enabled has no limit already.
        free = {WEIGHT: str(weight.WEIGHT_DEFAULT), CPU: f"max {quota.PERIOD_US}"}
        if value == free.get(knob, "max"):
            return False
        raise FileNotFoundError(
            errno.ENOENT, "the controller is not enabled here", self._path(knob)
        )

    def _throttled(self) -> dict[str, str]:
        text = files.read_optional(self._path(Knob(IO_FILE))) or ""
        return {
            device: line for device, _, line in (row.partition(" ") for row in text.splitlines())
        }

    def _path(self, knob: Knob) -> str:
        return f"{self._directory}/{knob.file}"


def _text(number: int | None) -> str:
    return "max" if number is None else str(number)


def _number(text: str | None) -> int | None:
    return None if text is None or text == "max" else int(text)


def _io_limit(device: str, line: str) -> IoLimit:
    fields = dict(pair.split("=") for pair in line.split())
    return IoLimit(device, **{name: _number(fields.get(name)) for name in _IO_FIELDS})
