"""The driver for hosts whose controllers are all on the unified hierarchy."""

from __future__ import annotations

import os

from nativert.isolation.cgroups import files, freezer, knobs, pressure, processes
from nativert.isolation.cgroups.driver import Mode
from nativert.isolation.cgroups.freezer import UnifiedFreezer
from nativert.isolation.cgroups.hierarchies import is_scope
from nativert.isolation.cgroups.host import Host
from nativert.isolation.cgroups.limits import Entry, Limits, Pressure, Usage
from nativert.isolation.cgroups.tree import Tree
from nativert.isolation.cgroups.v2_controllers import V2Controllers
from nativert.isolation.cgroups.v2_limits import V2Knobs
from nativert.isolation.cgroups.v2_usage import V2Sampler


class V2Cgroup:
    """One cgroup of the unified hierarchy."""

    def __init__(self, name: str, directory: str) -> None:
        self.name = name
        self._directory = directory
        self._freezer = UnifiedFreezer(directory)
        self._knobs = V2Knobs(directory)

    def entry(self) -> Entry:
        """Return what a process needs in order to join."""
        return Entry(
            tasks=(),
            into=self._directory,
            oom=self._present("memory.events"),
            peak=self._present("memory.peak"),  # since 5.19
            cpu=self._present("cpu.stat"),
            pids=self._present("pids.events"),
        )

    def apply(self, limits: Limits, *, since: Limits | None = None) -> Limits:
        """Set every limit or none, and return what the kernel made of them."""
        return knobs.apply(self._knobs, limits, since=since)

    def read(self) -> Limits:
        """Return the limits in force; the default weight and full cpuset read as None."""
        return self._knobs.limits(self._knobs.snapshot())

    def freeze(self, timeout_s: float) -> bool:
        """Stop all processes, and tell whether there are any; on TimeoutError they run again."""
        populated = freezer.freeze(self._freezer, timeout_s)
        return self.populated() if populated is None else populated

    def thaw(self, timeout_s: float = 5.0) -> None:
        """Let all processes run; TimeoutError if the kernel does not report it in time."""
        freezer.thaw(self._freezer, timeout_s)

    def frozen(self) -> bool:
        """Whether the kernel reports every process as frozen."""
        return self._freezer.frozen()

    def kill(self) -> None:
        """Send SIGKILL to all processes, frozen ones included, and thaw; does not wait."""
        processes.kill(self._directory, self._freezer)

    def pids(self) -> list[int]:
        """Return the processes as the caller's PID namespace numbers them."""
        return processes.pids(self._directory)

    def populated(self) -> bool:
        """Whether a live process is in the cgroup or below it."""
        return "populated 1" in (files.read_optional(f"{self._directory}/cgroup.events") or "")

    def working_set_bytes(self, *, above: int = 0) -> int:
        """Return its memory without the inactive page cache, which the kernel gives back.

        0 where that is not *above* anyway.
        """
        sampler = self.sampler()
        try:
            return sampler.working_set_bytes(above)
        finally:
            sampler.close()

    def usage(self) -> Usage:
        """Return all counters, once."""
        sampler = self.sampler()
        try:
            return sampler.sample()
        finally:
            sampler.close()

    def pressure(self) -> Pressure:
        """Return how much its processes had to wait of late."""
        return pressure.read(self._directory)

    def sampler(self) -> V2Sampler:
        """Open the counters for repeated reading."""
        return V2Sampler(self._directory)

    def remove(self) -> None:
        """Remove the directory; safe when it is gone."""
        files.remove_all([self._directory])

    def _present(self, file: str) -> str | None:
        path = f"{self._directory}/{file}"
        return path if os.path.exists(path) else None


class V2Driver:
    """All cgroups of one node in the unified hierarchy mounted at *root*."""

    mode: Mode = "v2"

    def __init__(self, parent: str, root: str, *, host: Host | None = None) -> None:
        self.parent = parent
        self._controllers = V2Controllers(root, parent, host or Host())
        # A new v2 cgroup needs nothing before it takes processes.
        given = [root] if is_scope(parent) else []
        self._tree = Tree([root], parent, lambda _: None, given=given)

    def prepare(self) -> None:
        """Make the parent and its leaves, and enable the controllers on the way down."""
        self._tree.prepare()
        self._controllers.evacuate()
        self._controllers.enable()

    def check(self, limits: Limits) -> None:
        """Raise UnenforceableError for the first limit that cannot be enforced."""
        self._controllers.check(limits)

    def create(self, name: str) -> V2Cgroup:
        """Make a cgroup; FileExistsError if it is there."""
        self._tree.make(name)
        path = self._tree.paths(name)[0]
        try:
            _end_as_one(path)
        except OSError:
            files.remove_all([path])
            raise
        return V2Cgroup(name, path)

    def open(self, name: str) -> V2Cgroup:
        """Return a cgroup by name, whether or not its directory exists."""
        return V2Cgroup(name, self._tree.paths(name)[0])

    def names(self) -> tuple[str, ...]:
        """Return the children of the parent, without the two leaves."""
        return self._tree.names()

    def exists(self) -> bool:
        """Whether the parent is in any hierarchy."""
        return self._tree.exists()

    def destroy(self) -> None:
        """Remove the leaves and the parent; OSError(EBUSY) while anything is in them."""
        self._tree.destroy()


def _end_as_one(path: str) -> None:
    """Let the OOM killer take a cgroup as a whole; it has no such switch without memory."""
    # An application that has lost one of its processes is neither alive nor ended, and its end
    # would not tell why. One whose oom_score_adj is -1000 is spared all the same.
    try:
        files.write(f"{path}/memory.oom.group", "1")
    except FileNotFoundError:
        pass  # Then there is no memory limit at which to kill either.
