"""Which hierarchies are mounted, as their directories show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

# The named hierarchy in which systemd keeps its units; it has no controller and no limits,
# but a process that stays behind in it is still part of somebody else's unit.
SYSTEMD: Final = "systemd"
# In these v1 hierarchies systemd makes no cgroups and removes none.
UNKEPT: Final = ("cpuset", "freezer")
_SCOPE: Final = ".scope"
_CONTROLLERS: Final = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "freezer", SYSTEMD)


class Hierarchies(msgspec.Struct, frozen=True):
    """The roots of the mounted hierarchies."""

    v1: dict[str, str]
    """Controller -> root directory; controllers mounted together share one."""
    unified: str | None
    """Root of cgroup2, if it is mounted."""


def mounted(mount_root: Path) -> Hierarchies:
    """Look below *mount_root*, usually /sys/fs/cgroup; see cgroups(7)."""
    if (mount_root / "cgroup.controllers").exists():
        return Hierarchies({}, str(mount_root))
    v1: dict[str, str] = {}
    for name in sorted(os.listdir(mount_root)) if mount_root.is_dir() else ():
        directory = mount_root / name
        # Only v1 has this file. cpu -> cpu,cpuacct is a link to the hierarchy of both.
        if not (directory / "tasks").exists():
            continue
        root = str(directory.resolve())
        v1 |= {controller: root for controller in name.split(",") if controller in _CONTROLLERS}
    unified = mount_root / "unified"
    has_unified = (unified / "cgroup.controllers").exists()
    return Hierarchies(v1, str(unified) if has_unified else None)


def keepers(found: Hierarchies) -> tuple[str, ...]:
    """Return the roots of the hierarchies in which systemd finds the processes of its units."""
    named = found.v1.get(SYSTEMD)
    return tuple(root for root in (named, found.unified) if root is not None)


def is_scope(parent: str) -> bool:
    """Whether a parent is a scope of systemd: made by it around a process, removed by it."""
    return parent.endswith(_SCOPE)
