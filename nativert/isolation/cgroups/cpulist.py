"""The kernel's list format for CPUs and memory nodes, "0-3,5"; see cpuset(7)."""

from __future__ import annotations

from collections.abc import Iterable


def parse_list(text: str) -> frozenset[int]:
    """Return the members of a list; ValueError if it is not one."""
    members: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        low, high = int(first), int(last) if dash else int(first)
        if low < 0 or high < low:
            raise ValueError(f"not a CPU list: {text!r}")
        members.update(range(low, high + 1))
    return frozenset(members)


def format_list(members: Iterable[int]) -> str:
    """Return members as the kernel prints them, neighbours joined: "0-3,5"."""
    ranges: list[list[int]] = []
    for member in sorted(members):
        if ranges and member == ranges[-1][1] + 1:
            ranges[-1][1] = member
        else:
            ranges.append([member, member])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
