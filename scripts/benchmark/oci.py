"""The OCI bundle for crun and runc: the same application with comparable isolation."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_SHOWN = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt")
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore",
    "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/slabinfo",
    "/proc/timer_list", "/sys/firmware",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_NAMESPACES = ("pid", "mount", "network", "ipc", "uts", "cgroup")
_ID_BASE = 0x7000_0000
_SECCOMP_MACHINES = ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]


def make_bundle(
    directory: Path, application: Path, *, cgroup: str, argument: str = "", full: bool
) -> Path:
    """Write a bundle and return it; *cgroup* is its place in every hierarchy.

    With *full* also a user namespace and a seccomp filter of nativert's size, as nativert
    always has them: that is more work for the peer.
    """
    rootfs = directory / "rootfs"
    rootfs.mkdir(parents=True)
    if full:
        # The mount points in it are made by the mapped root.
        os.chown(rootfs, _ID_BASE, _ID_BASE)
    mounts = [
        _mount("proc", "/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("tmpfs", "/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=64k"),
        _mount("devpts", "/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666"),
        _mount("tmpfs", "/dev/shm", "shm", "nosuid", "noexec", "nodev", "mode=1777"),
        _mount("sysfs", "/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("tmpfs", "/tmp", "tmpfs", "nosuid", "nodev", "mode=1777"),
        _mount("tmpfs", "/run", "tmpfs", "nosuid", "nodev", "mode=755"),
        _mount("tmpfs", "/var/tmp", "tmpfs", "nosuid", "nodev", "mode=1777"),
        _mount("bind", "/bench", str(application.parent), "rbind", "ro", "nosuid", "nodev"),
    ]
    for name in _SHOWN:
        path = Path("/") / name
        if path.is_symlink():
            (rootfs / name).symlink_to(os.readlink(path))
        elif path.exists():
            mounts.append(_mount("bind", str(path), str(path), "rbind", "ro", "nosuid", "nodev"))
    (directory / "config.json").write_text(
        json.dumps(
            {
                "ociVersion": "1.0.2",
                "process": {
                    "terminal": False,
                    "user": {"uid": 1000, "gid": 1000},
                    "args": ["/bench/app", *([argument] if argument else [])],
                    "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
                    "cwd": "/tmp",
                    "capabilities": {},
                    "noNewPrivileges": True,
                },
                "root": {"path": "rootfs", "readonly": True},
                "hostname": "bench",
                "mounts": mounts,
                "linux": _linux(cgroup, full=full),
            }
        )
    )
    return directory


def _mount(kind: str, target: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _linux(cgroup: str, *, full: bool) -> dict[str, Any]:
    linux: dict[str, Any] = {
        "cgroupsPath": cgroup,
        "namespaces": [{"type": name} for name in _NAMESPACES],
        "resources": {
            "memory": {"limit": 64 << 20},
            "cpu": {"quota": 100_000, "period": 100_000},
            "pids": {"limit": 64},
        },
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READ_ONLY),
    }
    if full:
        from nativert.isolation import seccomp_profile

        ids = [{"containerID": 0, "hostID": _ID_BASE, "size": 65536}]
        linux["namespaces"].append({"type": "user"})
        linux |= {"uidMappings": ids, "gidMappings": ids}
        linux["seccomp"] = {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": _SECCOMP_MACHINES,
            "syscalls": [
                {"names": sorted(seccomp_profile.ALLOWED), "action": "SCMP_ACT_ALLOW"},
            ],
        }
    return linux
