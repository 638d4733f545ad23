"""The driver for hosts with v1 controllers and a cgroup2 mount beside them.

Limits go to the v1 hierarchies. Freezing, killing and the question whether anyone is left
go to cgroup2: it is quicker, notifies, and its frozen processes still die of SIGKILL.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from nativert.isolation.cgroups import files, pressure
from nativert.isolation.cgroups.driver import Mode
from nativert.isolation.cgroups.freezer import UnifiedFreezer
from nativert.isolation.cgroups.host import Host
from nativert.isolation.cgroups.limits import Entry, Pressure
from nativert.isolation.cgroups.v1 import FREEZER, V1Cgroup, V1Driver


class HybridCgroup(V1Cgroup):
    """One cgroup in the v1 hierarchies and in cgroup2, where its processes are counted."""

    def entry(self) -> Entry:
        """Return what a process needs in order to join."""
        return replace(super().entry(), into=self._home)

    def populated(self) -> bool:
        """Whether a live process is in the cgroup or below it."""
        return "populated 1" in (files.read_optional(f"{self._home}/cgroup.events") or "")

    def pressure(self) -> Pressure:
        """Return how much its processes had to wait of late."""
        return pressure.read(self._home)


class HybridDriver(V1Driver):
    """All cgroups of one node; *roots* by controller, *unified* the cgroup2 mount."""

    mode: Mode = "hybrid"

    def __init__(
        self, parent: str, roots: Mapping[str, str], unified: str, *, host: Host | None = None
    ) -> None:
        # Two freezers would have to agree about every process.
        roots = {name: root for name, root in roots.items() if name != FREEZER}
        super().__init__(parent, roots, unified=unified, host=host)
        self._unified = unified

    def prepare(self) -> None:
        """Make the parent and its leaves."""
        self._tree.prepare()

    def open(self, name: str) -> HybridCgroup:
        """Return a cgroup by name, whether or not all of its directories exist."""
        directories = self._directories(name)
        home = f"{self._unified}/{self.parent}/{name}"
        return HybridCgroup(name, directories, home, UnifiedFreezer(home))
