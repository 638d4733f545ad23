"""The root file system of an instance: built on a small tmpfs, then pivoted into.

What is shown is the caller's decision and comes as a list of `Step`s; this module
carries it out. A read-only clone of a directory has no mount point for what is
mounted over it, so the top level is always a tmpfs of our own.
"""

from __future__ import annotations

import os
import stat
from collections import namedtuple
from collections.abc import Sequence

from nativert.isolation import mounts
from nativert.isolation.syscalls import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    pivot_root,
    umount2,
)

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Final

# kind: bind | tmpfs | overlay | symlink. A plain tuple type, because it also travels
# as JSON and the process that reads it imports as little as it can.
#   bind     source at target; flags: words of FLAGS
#   tmpfs    new at target; data: mount options
#   overlay  of the directories in data, the first of them on top; flags as with bind
#   symlink  at target, pointing to source
Step = namedtuple("Step", ("kind", "source", "target", "flags", "data"), defaults=("", "", (), ""))  # noqa: PYI024

FLAGS: Final = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}

# OCI runtime-spec, config-linux "Devices", and what a terminal needs.
_DEVICES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_DEV_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# runtime-spec defaults, and what else tells about the host or its kernel's addresses.
_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/sys/block",
    "/sys/class/block",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/tracing",
)
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_MAX_TERMINALS: Final = 256
_SHM_INODES: Final = 16384
_EMPTY_FILE: Final = "/.empty"
_EMPTY_DIRECTORY: Final = "/.none"


def _flags(words: Sequence[str]) -> int:
    flags = 0
    for word in words:
        flags |= FLAGS[word]
    return flags


def _dev(root: int, shm_bytes: int) -> None:
    # No nodev here: these nodes are the point. Everything else that is writable has it.
    mounts.attach("tmpfs", root, "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k")
    dev = mounts.open_target(root, "/dev")
    try:
        mask = os.umask(0)
        for name, (major, minor) in _DEVICES.items():
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=dev)
        os.umask(mask)
        for name, target in _DEV_LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        os.mkdir("pts", 0o755, dir_fd=dev)
        os.mkdir("shm", 0o1777, dir_fd=dev)
    finally:
        os.close(dev)
    # Terminals are counted host-wide: without a share of its own one instance takes all.
    pts = f"newinstance,ptmxmode=0666,mode=0620,max={_MAX_TERMINALS}"
    mounts.attach("devpts", root, "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, pts)
    shm = f"mode=1777,size={shm_bytes},nr_inodes={_SHM_INODES}"
    mounts.attach("shm", root, "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, shm)


def _sys(root: int, *, own_network: bool) -> None:
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    if own_network:
        mounts.attach("sysfs", root, "/sys", "sysfs", flags)
    else:
        # Not recursive: the host's cgroup file systems below /sys stay outside.
        mounts.bind("/sys", root, "/sys", flags, recursive=False)


def _mask(root: int, path: str) -> None:
    try:
        fd = mounts.open_target(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        empty = mounts.open_target(root, _EMPTY_DIRECTORY if directory else _EMPTY_FILE)
        try:
            mount(f"/proc/self/fd/{empty}", f"/proc/self/fd/{fd}", flags=MS_BIND)
        finally:
            os.close(empty)
    finally:
        os.close(fd)


def _overlay(root: int, layers: Sequence[str], target: str, flags: int) -> None:
    how = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fds: list[int] = []
    try:
        fds.extend(os.open(layer, how) for layer in layers)
        # By number: a path may have a comma or a colon, three may be longer than the page
        # that mount(2) takes, and the instance reads these options in its mountinfo.
        lower = ":".join(f"/proc/self/fd/{fd}" for fd in fds)
        # An image's attributes must not name another directory of its layer.
        data = f"lowerdir={lower},redirect_dir=nofollow"
        mounts.attach("overlay", root, target, "overlay", flags, data)
    finally:
        for fd in fds:
            os.close(fd)


def _apply(root: int, step: Step) -> None:
    if step.kind == "bind":
        mounts.bind(step.source, root, step.target, _flags(step.flags))
    elif step.kind == "tmpfs":
        mounts.attach("tmpfs", root, step.target, "tmpfs", _flags(step.flags), step.data)
    elif step.kind == "symlink":
        os.symlink(step.source, step.target.lstrip("/"), dir_fd=root)
    elif step.kind == "overlay":
        _overlay(root, step.data, step.target, _flags(step.flags))
    else:
        raise ValueError(f"unknown root step {step.kind!r}")


def build(new_root: str, steps: Sequence[Step], *, shm_bytes: int) -> int:
    """Build what does not depend on the network namespace; return the new root's descriptor.

    The caller is in a mount namespace of its own whose mounts are private, and in the
    PID namespace that /proc shall show.
    """
    mount("tmpfs", new_root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    root = os.open(new_root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.close(os.open(new_root + _EMPTY_FILE, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    os.mkdir(new_root + _EMPTY_DIRECTORY, 0o555)
    mounts.attach("proc", root, "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _dev(root, shm_bytes)
    for step in steps:
        try:
            _apply(root, step)
        except OSError as e:
            path = e.filename
            if path is None or path.startswith("/proc/self/fd/"):
                path = step.source or step.target
            raise OSError(e.errno, f"{step.kind} {step.target}: {e.strerror}", path) from e
    return root


def finish(new_root: str, root: int, *, own_network: bool) -> None:
    """Mount /sys, hide what the host keeps to itself, and make *new_root* the root."""
    _sys(root, own_network=own_network)
    for path in _READ_ONLY:
        try:
            os.close(mounts.open_target(root, path))
        except FileNotFoundError:
            continue
        mounts.bind(f"{new_root}{path}", root, path, MS_RDONLY, recursive=False)
    for path in _MASKED:
        _mask(root, path)
    for mounted in (new_root, f"{new_root}/dev"):
        flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID
        mount("none", mounted, flags=flags | (MS_NODEV if mounted == new_root else MS_NOEXEC))
    os.close(root)
    # pivot_root(2), "pivot_root(".", ".")": no directory for the old root is needed.
    os.chdir(new_root)
    pivot_root(".", ".")
    umount2(".", MNT_DETACH)
    os.chdir("/")


def make_private() -> None:
    """Cut mount propagation in both directions for this mount namespace."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
