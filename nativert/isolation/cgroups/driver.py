"""The Protocols that the v1, hybrid and v2 drivers fulfil, and their refusal."""

from __future__ import annotations

from typing import Final, Literal, Protocol

from nativert.errors import Code, NativertError
from nativert.isolation.cgroups.limits import Entry, Limits, Pressure, Usage

LAUNCHER: Final = "launcher"
INIT: Final = "init"
LEAVES: Final = (LAUNCHER, INIT)

Mode = Literal["v1", "hybrid", "v2"]


class UnenforceableError(NativertError):
    """This kernel, as it was booted, cannot enforce a limit; `fix` says what would help."""

    code = Code.UNENFORCEABLE

    def __init__(self, controller: str, reason: str, fix: str) -> None:
        super().__init__(f"cgroup controller {controller}: {reason}", hint=fix)
        self.controller = controller
        self.reason = reason
        self.fix = fix


class Sampler(Protocol):
    """Reads one cgroup's counters again and again through descriptors that stay open."""

    def core(self) -> tuple[int, int, int]:
        """Return (cpu ns, memory bytes, tasks), the three cheapest counters."""
        ...

    def sample(self) -> Usage:
        """Return all counters; OSError(ENODEV) once the cgroup is removed."""
        ...

    def close(self) -> None:
        """Close the descriptors; safe to call twice."""
        ...


class Cgroup(Protocol):
    """One cgroup: a directory of the same name in every hierarchy that the driver uses."""

    @property
    def name(self) -> str:
        """The name of the directories below the driver's parent."""
        ...

    def entry(self) -> Entry:
        """Return what a process needs in order to join."""
        ...

    def apply(self, limits: Limits, *, since: Limits | None = None) -> Limits:
        """Set every limit or none, and return what the kernel made of them.

        When the kernel refuses one (OSError with path, value and reason), the previous
        values are written back before the error is raised again.
        """
        ...

    def read(self) -> Limits:
        """Return the limits in force; a default weight and a full cpuset read as None."""
        ...

    def freeze(self, timeout_s: float) -> bool:
        """Stop all processes, and tell whether there are any; on TimeoutError they run again."""
        ...

    def thaw(self, timeout_s: float = 5.0) -> None:
        """Let all processes run; TimeoutError if the kernel does not report it in time."""
        ...

    def frozen(self) -> bool:
        """Whether the kernel reports every process as frozen."""
        ...

    def kill(self) -> None:
        """Send SIGKILL to all processes, frozen ones included, and thaw; does not wait."""
        ...

    def pids(self) -> list[int]:
        """Return the processes as the caller's PID namespace numbers them."""
        ...

    def populated(self) -> bool:
        """Whether a live process is in the cgroup or below it."""
        ...

    def working_set_bytes(self, *, above: int = 0) -> int:
        """Return its memory without the inactive page cache, which the kernel gives back.

        0 where that is not *above* anyway.
        """
        ...

    def usage(self) -> Usage:
        """Return all counters, once."""
        ...

    def pressure(self) -> Pressure:
        """Return how much its processes had to wait of late; nothing on v1."""
        ...

    def sampler(self) -> Sampler:
        """Open the counters for repeated reading."""
        ...

    def remove(self) -> None:
        """Remove the directories from all hierarchies; safe when they are gone.

        A directory that stays busy for a second raises OSError(EBUSY), after the others
        were removed.
        """
        ...


class Driver(Protocol):
    """Makes and finds the cgroups of one node, all below one parent."""

    @property
    def mode(self) -> Mode:
        """Which hierarchies carry the limits and the freezer."""
        ...

    @property
    def parent(self) -> str:
        """Path below the root of every hierarchy, such as "nativert-a1b2c3"."""
        ...

    def prepare(self) -> None:
        """Make the parent and its leaves for launcher and inits, and enable controllers.

        May be repeated. Processes found in the parent itself are moved to the launcher's
        leaf: a v2 cgroup with processes of its own cannot hand controllers down.
        """
        ...

    def check(self, limits: Limits) -> None:
        """Raise UnenforceableError for the first limit that this kernel cannot enforce."""
        ...

    def create(self, name: str) -> Cgroup:
        """Make a cgroup in all hierarchies or in none; FileExistsError if it is there.

        Where the kernel can (v2), its OOM killer takes all processes in it or none.
        """
        ...

    def open(self, name: str) -> Cgroup:
        """Return a cgroup by name, whether or not all of its directories exist."""
        ...

    def names(self) -> tuple[str, ...]:
        """Return the children of the parent in any hierarchy, without the two leaves."""
        ...

    def exists(self) -> bool:
        """Whether the parent is in any hierarchy."""
        ...

    def destroy(self) -> None:
        """Remove the leaves and the parent; OSError(EBUSY) while anything is in them."""
        ...
