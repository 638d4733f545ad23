"""The driver for hosts whose controllers and freezer are all v1 hierarchies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from nativert.isolation.cgroups import files, freezer, knobs, processes, v1_usage
from nativert.isolation.cgroups.driver import Mode
from nativert.isolation.cgroups.freezer import Freezer, LegacyFreezer
from nativert.isolation.cgroups.hierarchies import UNKEPT, Hierarchies, is_scope, keepers
from nativert.isolation.cgroups.host import Host
from nativert.isolation.cgroups.limits import Entry, Limits, Pressure, Usage
from nativert.isolation.cgroups.tree import Tree
from nativert.isolation.cgroups.v1_check import V1Check
from nativert.isolation.cgroups.v1_limits import V1Knobs

FREEZER: Final = "freezer"
# As Entry has it; in v1_usage "pids" is the number of processes.
_EVIDENCE: Final = {"oom": "oom", "peak": "peak", "cpu": "cpu", "pids": "refused"}


class V1Cgroup:
    """One cgroup in all v1 hierarchies; *directories* by controller.

    *home* is the directory that is asked for the processes.
    """

    def __init__(
        self, name: str, directories: Mapping[str, str], home: str, freezer_: Freezer
    ) -> None:
        self.name = name
        self._directories = directories
        self._home = home
        self._freezer = freezer_
        self._knobs = V1Knobs(directories)

    def entry(self) -> Entry:
        """Return what a process needs in order to join."""
        unique = dict.fromkeys(self._directories.values())
        evidence = {name: self._present(file) for name, file in _EVIDENCE.items()}
        return Entry(tasks=tuple(f"{path}/tasks" for path in unique), into=None, **evidence)

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
        processes.kill(self._home, self._freezer)

    def pids(self) -> list[int]:
        """Return the processes as the caller's PID namespace numbers them."""
        return processes.pids(self._home)

    def populated(self) -> bool:
        """Whether a live process is in the cgroup or below it."""
        return bool(self.pids())

    def working_set_bytes(self, *, above: int = 0) -> int:
        """Return its memory without the inactive page cache, which the kernel gives back.

        0 where that is not *above* anyway.
        """
        return v1_usage.working_set_bytes(self._directories, above)

    def usage(self) -> Usage:
        """Return all counters, once."""
        sampler = self.sampler()
        try:
            return sampler.sample()
        finally:
            sampler.close()

    def pressure(self) -> Pressure:
        """Return nothing: the kernel keeps no such figures for v1."""
        return Pressure()

    def sampler(self) -> v1_usage.V1Sampler:
        """Open the counters for repeated reading."""
        return v1_usage.V1Sampler(self._directories)

    def remove(self) -> None:
        """Remove the directories from all hierarchies; safe when they are gone."""
        files.remove_all(dict.fromkeys((*self._directories.values(), self._home)))

    def _present(self, counter: str) -> str | None:
        path = v1_usage.path(self._directories, counter)
        return path if path is not None and os.path.exists(path) else None


class V1Driver:
    """All cgroups of one node in the v1 hierarchies; *roots* by controller.

    *unified* is the cgroup2 mount of a hybrid host.
    """

    mode: Mode = "v1"

    def __init__(
        self,
        parent: str,
        roots: Mapping[str, str],
        *,
        unified: str | None = None,
        host: Host | None = None,
    ) -> None:
        self.parent = parent
        self._roots = roots
        self._check = V1Check(roots, unified, parent, host or Host())
        every = (*roots.values(), unified) if unified else tuple(roots.values())
        if is_scope(parent):
            given = keepers(Hierarchies(dict(roots), unified))
            alone = [root for name, root in roots.items() if name in UNKEPT]
            self._tree = Tree(every, parent, self._initialise, given=given, alone=alone)
        else:
            self._tree = Tree(every, parent, self._initialise)

    def prepare(self) -> None:
        """Make the parent and its leaves; UnenforceableError without the freezer."""
        # Pausing and the sure end of a tree of processes stand on it.
        self._check.require(FREEZER)
        self._tree.prepare()

    def check(self, limits: Limits) -> None:
        """Raise UnenforceableError for the first limit that cannot be enforced."""
        self._check.check(limits)

    def create(self, name: str) -> V1Cgroup:
        """Make a cgroup in all hierarchies or in none; FileExistsError if it is there."""
        self._tree.make(name)
        return self.open(name)

    def open(self, name: str) -> V1Cgroup:
        """Return a cgroup by name, whether or not all of its directories exist."""
        directories = self._directories(name)
        self._check.require(FREEZER)
        home = directories[FREEZER]
        return V1Cgroup(name, directories, home, LegacyFreezer(home))

    def names(self) -> tuple[str, ...]:
        """Return the children of the parent in any hierarchy, without the two leaves."""
        return self._tree.names()

    def exists(self) -> bool:
        """Whether the parent is in any hierarchy."""
        return self._tree.exists()

    def destroy(self) -> None:
        """Remove the leaves and the parent; OSError(EBUSY) while anything is in them."""
        self._tree.destroy()

    def _directories(self, name: str) -> dict[str, str]:
        self._tree.paths(name)  # refuses a name that is a path
        return {c: f"{root}/{self.parent}/{name}" for c, root in self._roots.items()}

    def _initialise(self, path: str) -> None:
        cpuset = self._roots.get("cpuset")
        if cpuset is not None and path.startswith(f"{cpuset}/"):
            inherit_cpuset(path)


def inherit_cpuset(path: str) -> None:
    """Give a v1 cpuset its parent's CPUs and memory nodes unless it has some.

    The kernel makes it with neither, and then refuses every process (ENOSPC).
    """
    above = os.path.dirname(path)
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not files.read(f"{path}/{file}"):
            files.write(f"{path}/{file}", files.read(f"{above}/{file}"))
