"""Setting several interface files all or none, whatever their version of cgroups.

A driver describes its files as knobs; this module owns the order of reading, writing,
rolling back and reading back.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from nativert.isolation.cgroups.limits import Limits

V = TypeVar("V")

EVERY: Final = frozenset(Limits.__struct_fields__)
# Their files depend on each other.
MEMORY_FIELDS: Final = frozenset({"memory_max", "memory_high", "memory_swap"})


class Knob(NamedTuple):
    """An interface file, and the device if the file has one line per device."""

    file: str
    device: str = ""


class Knobs(Protocol[V]):
    """The limit files of one cgroup; V is how this version types their values.

    *which* names fields of `Limits`.
    """

    def snapshot(self, which: frozenset[str]) -> dict[Knob, V]:
        """Read every knob of these fields that exists."""
        ...

    def assume(self, limits: Limits, which: frozenset[str]) -> dict[Knob, V]:
        """Return what `snapshot` returns where *limits* are in force; cheaper if it can be."""
        ...

    def plan(
        self, limits: Limits, before: dict[Knob, V], which: frozenset[str]
    ) -> list[tuple[Knob, V]]:
        """Return what must be written to reach *limits*, in an order the kernel accepts."""
        ...

    def exact(self, knob: Knob) -> bool:
        """Tell whether the kernel keeps what is written, so that it need not be read back."""
        ...

    def get(self, knob: Knob) -> V:
        """Read one knob."""
        ...

    def set(self, knob: Knob, value: V) -> None:
        """Write one knob; OSError with path, value and reason if the kernel refuses."""
        ...

    def limits(self, values: dict[Knob, V]) -> Limits:
        """Translate values back."""
        ...


def apply(knobs: Knobs[V], limits: Limits, *, since: Limits | None = None) -> Limits:
    """Set every limit or none, and return what the kernel made of them.

    With *since*, the limits in force, only what differs from them is looked at. The kernel's
    refusal is raised again after the rollback; what could not be rolled back is among its notes.
    """
    limits = limits.rounded()
    which = EVERY if since is None else _different(limits, since)
    before = knobs.snapshot(which) if since is None else knobs.assume(since, which)
    touched: list[Knob] = []
    try:
        for knob, value in knobs.plan(limits, before, which):
            if knob not in before:
                before[knob] = knobs.get(knob)  # a device without limits so far
            # Before the write: a refused value may have been taken in part.
            touched.append(knob)
            knobs.set(knob, value)
    except OSError as error:
        _restore(knobs, touched, before, error)
        raise
    if all(map(knobs.exact, touched)):
        return limits
    after = before | {knob: knobs.get(knob) for knob in dict.fromkeys(touched)}
    read = _settle(knobs.limits(after), limits)
    return replace(limits, **{field: getattr(read, field) for field in which})


def _different(limits: Limits, since: Limits) -> frozenset[str]:
    which = frozenset(f for f in EVERY if getattr(limits, f) != getattr(since, f))
    return which | MEMORY_FIELDS if which & MEMORY_FIELDS else which


def _restore(knobs: Knobs[V], touched: list[Knob], before: dict[Knob, V], error: OSError) -> None:
    # Backwards: what had to precede a change has to follow its reversal (v1 memory, memsw).
    for knob in dict.fromkeys(reversed(touched)):
        try:
            knobs.set(knob, before[knob])
        except OSError as failure:
            error.add_note(f"cannot restore: {failure}")


def _settle(read: Limits, asked: Limits) -> Limits:
    # Some answers cannot be told from "no limit": the default weight, the parent's full
    # cpuset, no swap on a host without swap. They were asked for and are in force.
    return replace(
        read,
        cpu_weight=asked.cpu_weight if read.cpu_weight is None else read.cpu_weight,
        cpuset=asked.cpuset if read.cpuset is None else read.cpuset,
        memory_swap=asked.memory_swap if read.memory_swap is None else read.memory_swap,
    )
