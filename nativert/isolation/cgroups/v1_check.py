"""Whether the mounted v1 hierarchies can enforce limits, and what would help if not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from nativert.isolation.cgroups import common_check, files
from nativert.isolation.cgroups.cpulist import parse_list
from nativert.isolation.cgroups.driver import UnenforceableError
from nativert.isolation.cgroups.host import Host
from nativert.isolation.cgroups.limits import Limits
from nativert.isolation.cgroups.v1_limits import (
    THROTTLE,
    refuse_inexpressible,
    refuse_swap_alone,
)

_SWAP_FIX: Final = "boot with swapaccount=1 on the kernel command line"


class V1Check:
    """Looks at the nearest existing cgroup on the way to *parent* in each hierarchy."""

    def __init__(
        self, roots: Mapping[str, str], unified: str | None, parent: str, host: Host
    ) -> None:
        self._roots = roots
        self._unified = unified
        self._parent = parent
        self._host = host
        self._present: set[str] = set()

    def check(self, limits: Limits) -> None:
        """Raise UnenforceableError for the first limit that cannot be enforced."""
        common_check.check_ranges(limits)
        refuse_inexpressible(limits)
        if limits.cpu_max is not None:
            self._need("cpu", "cpu.cfs_quota_us", "CFS_BANDWIDTH")
        if limits.cpu_weight is not None:
            self._need("cpu", "cpu.shares", "FAIR_GROUP_SCHED")
        if limits.cpuset is not None:
            self._need("cpuset", "cpuset.cpus", "CPUSETS")
            available = files.read(f"{nearest(self._roots['cpuset'], self._parent)}/cpuset.cpus")
            common_check.check_cpuset(limits.cpuset, parse_list(available))
        if limits.memory_max is not None:
            self._need("memory", "memory.limit_in_bytes", "MEMCG_V1")
        if limits.memory_swap is not None and (limits.memory_swap > 0 or self._host.has_swap()):
            self._need("memory", "memory.memsw.limit_in_bytes", "MEMCG_V1", fix=_SWAP_FIX)
            refuse_swap_alone(limits)
        if limits.pids_max is not None:
            self._need("pids", "cgroup.procs", "CGROUP_PIDS")
        for limit in limits.io:
            for field, file in THROTTLE.items():
                if getattr(limit, field) is not None:
                    self._need("blkio", file, "BLK_DEV_THROTTLING")
            common_check.check_disk("blkio", limit.device, self._host)

    def require(self, controller: str) -> None:
        """Raise UnenforceableError unless a hierarchy with *controller* is mounted."""
        if controller in self._roots:
            return
        if self._unified and controller in _words(f"{self._unified}/cgroup.controllers"):
            reason = "it is bound to the unified hierarchy, the others to v1"
            raise UnenforceableError(
                controller, reason, "boot with systemd.unified_cgroup_hierarchy=1"
            )
        mount = f"mount -t cgroup -o {controller} cgroup DIRECTORY below the cgroup mount point"
        raise UnenforceableError(
            controller, "its v1 hierarchy is not mounted", self._host.fix(controller, mount)
        )

    def _need(self, controller: str, file: str, option: str, *, fix: str = "") -> None:
        # What a kernel has it keeps.
        if f"{controller}/{file}" in self._present:
            return
        self.require(controller)
        if not os.path.exists(f"{nearest(self._roots[controller], self._parent)}/{file}"):
            fix = fix or f"use a kernel with CONFIG_{option}"
            raise UnenforceableError(controller, f"this kernel has no {file}", fix)
        self._present.add(f"{controller}/{file}")


def nearest(root: str, parent: str) -> str:
    """Return the parent's directory, or the nearest one above it that exists."""
    path = f"{root}/{parent}"
    while path != root and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _words(path: str) -> list[str]:
    return (files.read_optional(path) or "").split()
