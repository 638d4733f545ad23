"""What a node tells of its machine, in fog05's shapes: MB of memory, GB of disk, MHz."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Final

import psutil

from nativert.agent.config import Config
from nativert.plugin import interfaces

_MB: Final = 1 << 20
_GB: Final = 1 << 30


def info(node_id: str, name: str, directory: Path) -> dict[str, Any]:
    """Return what does not change while the machine runs."""
    # A virtual machine, or a kernel of arm64, may not tell.
    clocks = [float(each.max or each.current) for each in psutil.cpu_freq(percpu=True)]
    mhz = max(clocks, default=0.0)
    cpu = {"model": _model(), "frequency": mhz, "arch": platform.machine()}
    return {
        "uuid": node_id,
        "name": name,
        "os": "linux",
        "cpu": [cpu] * len(os.sched_getaffinity(0)),
        "ram": {"size": psutil.virtual_memory().total / _MB},
        "disks": [
            {
                "local_address": disk.device,
                "dimension": _usage(disk.mountpoint)[0],
                "mount_point": disk.mountpoint,
                "filesystem": disk.fstype,
            }
            for disk in _disks(directory)
        ],
        "io": [],
        "accelerator": [],
        "network": interfaces.all_of_host(()),
    }


def status(node_id: str, directory: Path) -> dict[str, Any]:
    """Return what is free now."""
    memory = psutil.virtual_memory()
    disks = []
    for disk in _disks(directory):
        total, free = _usage(disk.mountpoint)
        disks.append({"mount_point": disk.mountpoint, "total": total, "free": free})
    return {
        "uuid": node_id,
        "ram": {"total": memory.total / _MB, "free": memory.available / _MB},
        "disk": disks,
        "neighbors": [],
    }


def configuration(node_id: str, config: Config, directory: Path) -> dict[str, Any]:
    """Return what an agent of fog05 tells of its configuration."""
    listen = config.zenoh.listen if config.zenoh else ()
    return {
        "agent": {
            "system": "0",
            "uuid": node_id,
            "expose": True,
            "yaks": listen[0] if listen else "",
            "path": str(directory),
            "enable_lldp": False,
            "enable_spawner": False,
            "pid_file": "",
            "mgmt_interface": "",
            "lldp_conf": "",
        },
        "plugins": {
            "plugin_path": config.plugins.directory or "",
            "autoload": True,
            "auto": ["native"],
        },
    }


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _disks(directory: Path) -> list[Any]:
    """Return the file systems that hold the root directory and the node's own."""
    mounts = {each.mountpoint: each for each in psutil.disk_partitions(all=True)}
    found = {}
    for start in (Path("/"), directory):
        path = start.resolve()
        while str(path) not in mounts and path != path.parent:
            path = path.parent
        if str(path) in mounts:
            found[str(path)] = mounts[str(path)]
    return list(found.values())


def _usage(mount_point: str) -> tuple[float, float]:
    try:
        usage = psutil.disk_usage(mount_point)
    except OSError:
        return (0.0, 0.0)  # Not mounted any more.
    return (usage.total / _GB, usage.free / _GB)
