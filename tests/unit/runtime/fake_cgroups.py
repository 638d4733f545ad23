"""Cgroups in memory, whose every call is a step of a `fake_host.Host` that can be made to fail."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from nativert.isolation.cgroups.driver import INIT
from nativert.isolation.cgroups.limits import Entry, Limits, Pressure, Usage

if TYPE_CHECKING:
    from fake_host import Host, Sleeper


class Cgroup:
    def __init__(self, host: Host, name: str) -> None:
        self._host, self.name = host, name

    def _application(self) -> Sleeper | None:
        return self._host.application(self.name.removeprefix("i-"))

    def _there(self, step: str) -> None:
        self._host.step(step)
        if self.name not in self._host.cgroups:
            raise FileNotFoundError(errno.ENOENT, "no such cgroup", self.name)

    def entry(self) -> Entry:
        return Entry(tasks=(), into=None, oom=None, peak=None, cpu=None)

    def apply(self, limits: Limits, *, since: Limits | None = None) -> Limits:
        self._there("apply")
        self._host.cgroups[self.name] = limits
        return limits

    def freeze(self, timeout_s: float) -> bool:
        self._there("freeze")
        self._host.frozen.add(self.name)
        return self._application() is not None

    def thaw(self, timeout_s: float = 5.0) -> None:
        self._there("thaw")
        self._host.frozen.discard(self.name)

    def frozen(self) -> bool:
        self._there("frozen")
        return self.name in self._host.frozen

    def kill(self) -> None:
        self._host.step("kill")
        application = self._application()
        if application is not None:
            application.kill()
            self._host.notice()
        self._host.frozen.discard(self.name)

    def pids(self) -> list[int]:
        if self.name == INIT:
            self._host.notice()
            return [init.process.pid for init in self._host.inits.values()]
        application = self._application()
        return [] if application is None else [application.pid]

    def populated(self) -> bool:
        self._host.step("populated")
        return bool(self.pids())

    def usage(self) -> Usage:
        return Usage(
            cpu_ns=0, throttled_ns=0, throttled_periods=0, memory_bytes=0, working_set_bytes=0,
            peak_bytes=None, anon_bytes=None, file_bytes=None, swap_bytes=None, pids=1,
            io_read_bytes=0, io_write_bytes=0, oom_kills=0,
        )  # fmt: skip

    def working_set_bytes(self, *, above: int = 0) -> int:
        return self.usage().working_set_bytes

    def pressure(self) -> Pressure:
        self._there("pressure")
        return Pressure()

    def sampler(self) -> Any:
        raise FileNotFoundError(errno.ENOENT, "no counters here", self.name)

    def remove(self) -> None:
        self._host.step("remove")
        if self.populated():
            raise OSError(errno.EBUSY, "busy", self.name)
        self._host.cgroups.pop(self.name, None)
        self._host.frozen.discard(self.name)


class Driver:
    mode = "hybrid"
    parent = "nativert-fake"

    def __init__(self, host: Host) -> None:
        self._host = host

    def prepare(self) -> None:
        self._host.step("prepare cgroups")

    def check(self, limits: Limits) -> None:
        pass

    def create(self, name: str) -> Cgroup:
        self._host.step("make cgroup")
        if name in self._host.cgroups:
            raise FileExistsError(errno.EEXIST, "there already", name)
        self._host.cgroups[name] = Limits()
        return self.open(name)

    def open(self, name: str) -> Cgroup:
        return Cgroup(self._host, name)

    def names(self) -> tuple[str, ...]:
        return tuple(self._host.cgroups)

    def exists(self) -> bool:
        return False

    def destroy(self) -> None:
        pass
