"""Cgroups behind one Protocol, whatever hierarchies the kernel has mounted."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nativert.isolation.cgroups.driver import Driver, UnenforceableError
from nativert.isolation.cgroups.hierarchies import mounted

_MOUNT_ROOT: Final = Path("/sys/fs/cgroup")


def detect(parent: str, *, mount_root: Path = _MOUNT_ROOT) -> Driver:
    """Return the driver for what is mounted; UnenforceableError if nothing is.

    *parent* is the path of the node's cgroup below the root of every hierarchy.
    """
    found = mounted(mount_root)
    if found.unified and not found.v1:
        from nativert.isolation.cgroups.v2 import V2Driver

        return V2Driver(parent, found.unified)
    if found.unified:
        from nativert.isolation.cgroups.hybrid import HybridDriver

        return HybridDriver(parent, found.v1, found.unified)
    if found.v1:
        from nativert.isolation.cgroups.v1 import V1Driver

        return V1Driver(parent, found.v1)
    raise UnenforceableError(
        "cgroup", f"no hierarchy is mounted at {mount_root}", f"mount -t cgroup2 none {mount_root}"
    )
