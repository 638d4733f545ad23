"""What no version of cgroups can enforce: values out of range, absent CPUs and disks."""

from __future__ import annotations

from nativert.isolation.cgroups import quota, weight
from nativert.isolation.cgroups.cpulist import format_list, parse_list
from nativert.isolation.cgroups.driver import UnenforceableError
from nativert.isolation.cgroups.host import Host
from nativert.isolation.cgroups.limits import Limits


def check_ranges(limits: Limits) -> None:
    """Raise UnenforceableError for a CPU share that the scheduler cannot express."""
    if limits.cpu_max is not None and limits.cpu_max < quota.CORES_MIN:
        raise UnenforceableError(
            "cpu",
            f"{limits.cpu_max:g} cores is less than the shortest quota allows",
            f"ask for {quota.CORES_MIN:g} cores or more",
        )
    share = limits.cpu_weight
    if share is not None and not weight.WEIGHT_MIN <= share <= weight.WEIGHT_MAX:
        raise UnenforceableError(
            "cpu",
            f"weight {share} is out of range",
            f"ask for {weight.WEIGHT_MIN} to {weight.WEIGHT_MAX}",
        )


def check_cpuset(cpuset: str, available: frozenset[int]) -> None:
    """Raise UnenforceableError unless every CPU of the list is available."""
    choices = format_list(available)
    try:
        wanted = parse_list(cpuset)
    except ValueError:
        raise UnenforceableError(
            "cpuset", f"{cpuset!r} is not a CPU list", f"choose from {choices}, as in 0-3,5"
        ) from None
    if not wanted:
        raise UnenforceableError("cpuset", "the CPU list is empty", f"choose from {choices}")
    if missing := wanted - available:
        raise UnenforceableError(
            "cpuset",
            f"cpu {format_list(missing)} is not online or not given to this node",
            f"choose from {choices}",
        )


def check_disk(controller: str, device: str, host: Host) -> None:
    """Raise UnenforceableError unless *device* is a whole disk of this host."""
    disk = host.disk(device)
    if disk is None:
        raise UnenforceableError(
            controller, f"no block device {device}", "see MAJ:MIN in the output of lsblk"
        )
    if disk != device:
        raise UnenforceableError(
            controller,
            f"{device} is a partition, and only whole disks are throttled",
            f"use its disk, {disk}",
        )
