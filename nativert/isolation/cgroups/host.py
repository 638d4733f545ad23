"""What the host has, as far as limits depend on it: swap, disks, controllers, the board."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

from nativert.isolation.cgroups import files

_DEVICE: Final = re.compile(r"[0-9]+:[0-9]+")


@dataclass(frozen=True, slots=True)
class Host:
    """Reads /proc and /sys, or what stands in for them."""

    proc: str = "/proc"
    sys: str = "/sys"

    def has_swap(self) -> bool:
        """Whether any swap is on now; see proc_meminfo(5)."""
        found = re.search(r"^SwapTotal:\s+(\d+)", files.read(f"{self.proc}/meminfo"), re.MULTILINE)
        return found is not None and found[1] != "0"

    def disabled(self, controller: str) -> bool:
        """Whether the kernel knows the controller and was booted without it (cgroups(7))."""
        for line in (files.read_optional(f"{self.proc}/cgroups") or "").splitlines():
            fields = line.split()
            if fields[0] == controller:
                return fields[-1] == "0"
        return False

    def fix(self, controller: str, otherwise: str) -> str:
        """Return what makes an absent controller appear; *otherwise* if it was not disabled."""
        if not self.disabled(controller):
            return otherwise
        if controller == "memory" and self._raspberry_pi():
            path = "/boot/firmware/cmdline.txt"
            return f"append cgroup_enable=memory cgroup_memory=1 to the line in {path} and reboot"
        return f"boot with cgroup_enable={controller} and without cgroup_disable={controller}"

    def disk(self, device: str) -> str | None:
        """Return "major:minor" of the whole disk that a device is, or is on; None if unknown."""
        if not _DEVICE.fullmatch(device):
            return None
        path = f"{self.sys}/dev/block/{device}"
        if not os.path.exists(path):
            return None
        if not os.path.exists(f"{path}/partition"):
            return device
        # sysfs keeps a partition in its disk's directory.
        return files.read(f"{os.path.realpath(path)}/../dev")

    def _raspberry_pi(self) -> bool:
        model = files.read_optional(f"{self.proc}/device-tree/model") or ""
        return model.startswith("Raspberry Pi")
