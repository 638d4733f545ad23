"""Handing v2 controllers down to the node's cgroups, and telling which are there."""

from __future__ import annotations

import os
from typing import Final

from nativert.isolation.cgroups import common_check, files, processes
from nativert.isolation.cgroups.cpulist import parse_list
from nativert.isolation.cgroups.driver import LAUNCHER, UnenforceableError
from nativert.isolation.cgroups.hierarchies import is_scope
from nativert.isolation.cgroups.host import Host
from nativert.isolation.cgroups.limits import Limits

WANTED: Final = ("cpu", "cpuset", "io", "memory", "pids")


class V2Controllers:
    """The way from the root of cgroup2 at *root* down to *parent*."""

    def __init__(self, root: str, parent: str, host: Host) -> None:
        self._root = root
        self._parent = parent
        self._host = host
        self._refused: dict[tuple[str, str], OSError] = {}

    def enable(self) -> None:
        """Enable every wanted controller as far down as the kernel lets.

        A refusal is no error here: only a limit that needs the controller makes it one.
        """
        way = self._way()
        # Above a scope systemd hands down what it was asked to delegate, and takes it back.
        for directory in way[-1:] if is_scope(self._parent) else way:
            available = _words(f"{directory}/cgroup.controllers")
            enabled = _words(f"{directory}/cgroup.subtree_control")
            for controller in WANTED:
                if controller in available and controller not in enabled:
                    # One by one: the kernel takes all of a write or nothing.
                    try:
                        files.write(f"{directory}/cgroup.subtree_control", f"+{controller}")
                    except OSError as error:
                        self._refused[directory, controller] = error

    def evacuate(self) -> None:
        """Move processes out of the parent itself into the launcher's leaf.

        A cgroup with processes of its own cannot hand controllers down (EBUSY).
        """
        parent = f"{self._root}/{self._parent}"
        for pid in processes.own_pids(parent):
            try:
                files.write(f"{parent}/{LAUNCHER}/cgroup.procs", str(pid))
            except ProcessLookupError:
                continue  # it has ended by itself

    def check(self, limits: Limits) -> None:
        """Raise UnenforceableError for the first limit that cannot be enforced."""
        common_check.check_ranges(limits)
        if limits.cpu_max is not None:
            self._need("cpu", "cpu.max", "CFS_BANDWIDTH")
        if limits.cpu_weight is not None:
            self._need("cpu", "cpu.weight", "FAIR_GROUP_SCHED")
        if limits.cpuset is not None:
            self._need("cpuset", "cpuset.cpus", "CPUSETS")
            common_check.check_cpuset(limits.cpuset, self._cpus())
        if limits.memory_max is not None:
            self._need("memory", "memory.max", "MEMCG")
        if limits.memory_high is not None:
            self._need("memory", "memory.high", "MEMCG")
        if limits.memory_swap is not None and (limits.memory_swap > 0 or self._host.has_swap()):
            self._need("memory", "memory.swap.max", "SWAP")
        if limits.pids_max is not None:
            self._need("pids", "pids.max", "CGROUP_PIDS")
        for limit in limits.io:
            self._need("io", "io.max", "BLK_DEV_THROTTLING")
            common_check.check_disk("io", limit.device, self._host)

    def _need(self, controller: str, file: str, option: str) -> None:
        kernel = f"use a kernel with CONFIG_{option}"
        way = self._way()
        if controller not in _words(f"{way[0]}/cgroup.controllers"):
            fix = self._host.fix(controller, f"unmount its v1 hierarchy, or {kernel}")
            raise UnenforceableError(controller, f"not listed in {way[0]}/cgroup.controllers", fix)
        if not self._prepared():
            return  # enabling it is still to be tried
        for directory in way:
            path = f"{directory}/cgroup.subtree_control"
            if controller not in _words(path):
                refused = self._refused.get((directory, controller))
                why = f" ({refused.strerror})" if refused else ""
                raise UnenforceableError(
                    controller,
                    f"not enabled in {path}{why}",
                    f"echo +{controller} > {path}, or Delegate=yes in the systemd unit",
                )
        if not os.path.exists(f"{way[-1]}/{LAUNCHER}/{file}"):
            raise UnenforceableError(controller, f"this kernel has no {file}", kernel)

    def _cpus(self) -> frozenset[int]:
        # Before prepare() the file may exist at the root only.
        for directory in reversed(self._way()):
            text = files.read_optional(f"{directory}/cpuset.cpus.effective")
            if text is not None:
                return parse_list(text)
        raise UnenforceableError(
            "cpuset", "this kernel has no cpuset.cpus.effective", "use a kernel with CONFIG_CPUSETS"
        )

    def _prepared(self) -> bool:
        return os.path.isdir(f"{self._root}/{self._parent}/{LAUNCHER}")

    def _way(self) -> list[str]:
        # From the root to the parent, as far as it exists.
        way = [self._root]
        for component in self._parent.split("/"):
            below = f"{way[-1]}/{component}"
            if not os.path.isdir(below):
                break
            way.append(below)
        return way


def _words(path: str) -> list[str]:
    return (files.read_optional(path) or "").split()
