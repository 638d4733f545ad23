"""System calls that Python's standard library has no wrapper for.

Functions carry the system call's name and raise `OSError`; constants carry the
header's. Only this module imports ctypes. Nothing here decides anything.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_uint32, c_ulong, c_void_p

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Any, Final

# linux/sched.h
CLONE_VM: Final = 0x00000100
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_PIDFD: Final = 0x00001000
CLONE_INTO_CGROUP: Final = 0x200000000

_SIGCHLD: Final = 17  # on every architecture that we run on

# sys/mount.h
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_NOSYMFOLLOW: Final = 256
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

# linux/mount.h, linux/fcntl.h
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

# linux/openat2.h
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# linux/close_range.h, sys/inotify.h
CLOSE_RANGE_CLOEXEC: Final = 4
IN_MODIFY: Final = 0x2
IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_NONBLOCK: Final = 0o4000
IN_CLOEXEC: Final = 0o2000000

# asm/unistd.h: the numbers above 423 are the same on every architecture.
_X86_64: Final = {"pivot_root": 155, "keyctl": 250}
_AARCH64: Final = {"pivot_root": 41, "keyctl": 219}
_COMMON: Final = {"clone3": 435, "close_range": 436, "openat2": 437, "mount_setattr": 442}
NUMBERS: Final = {
    "x86_64": {**_X86_64, **_COMMON},
    "aarch64": {**_AARCH64, **_COMMON},
}
_NUMBER: Final = NUMBERS.get(os.uname().machine, NUMBERS["x86_64"])

_libc = ctypes.CDLL(None, use_errno=True)
# Holds the GIL: the child of clone3 must come back as its owner.
_libc_gil = ctypes.PyDLL(None, use_errno=True)


def _bind(name: str, *argtypes: Any) -> Callable[..., Any]:
    # Declared types let ctypes refuse a str or a lost pointer before libc sees it.
    function = _libc[name]
    function.argtypes = argtypes
    return function


_unshare = _bind("unshare", c_int)
_setns = _bind("setns", c_int, c_int)
_mount = _bind("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _bind("umount2", c_char_p, c_int)
_syncfs = _bind("syncfs", c_int)
_inotify_init1 = _bind("inotify_init1", c_int)
_signalfd = _bind("signalfd", c_int, c_char_p, c_int)
_inotify_add_watch = _bind("inotify_add_watch", c_int, c_char_p, c_uint32)
_syscall = _libc["syscall"]
_syscall.restype = c_long
_clone3 = _libc_gil["syscall"]
_clone3.restype = c_long
_clone3.argtypes = (c_long, c_void_p, c_size_t)
_clone = _bind("clone", c_void_p, c_void_p, c_int, c_void_p)
_pause = ctypes.cast(_libc["pause"], c_void_p)
_PAUSED_STACK_BYTES: Final = 16384
_paused_stack = ctypes.create_string_buffer(_PAUSED_STACK_BYTES)
_before_fork = ctypes.pythonapi["PyOS_BeforeFork"]
_after_fork_child = ctypes.pythonapi["PyOS_AfterFork_Child"]
_after_fork_parent = ctypes.pythonapi["PyOS_AfterFork_Parent"]
for _hook in (_before_fork, _after_fork_child, _after_fork_parent):
    _hook.restype = None
    _hook.argtypes = ()


def _check(result: int, call: str, path: str | None = None) -> int:
    if result == -1:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{call}: {os.strerror(errno)}", path)
    return result


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces; see unshare(2)."""
    # CLONE_NEWPID applies to children created later, so the caller must fork.
    _check(_unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, nstype: int) -> None:
    """Move the calling thread into the namespace that *fd* refers to; see setns(2)."""
    _check(_setns(fd, nstype), f"setns({nstype:#x})")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """Attach a filesystem, or change how mounts propagate; see mount(2)."""
    result = _mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() or None,
        flags,
        data.encode() or None,
    )
    if result == -1:
        _check(result, f"mount({source!r}, type={fstype!r}, flags={flags:#x})", target)


def umount2(target: str, flags: int = 0) -> None:
    """Detach a filesystem; see umount2(2)."""
    _check(_umount2(os.fsencode(target), flags), f"umount2({flags:#x})", target)


def syncfs(fd: int) -> None:
    """Write all that waits of the file system of *fd* to its disk; see syncfs(2)."""
    _check(_syncfs(fd), "syncfs")


def pivot_root(new_root: str, put_old: str) -> None:
    """Change the root mount; see pivot_root(2)."""
    result = _syscall(
        c_long(_NUMBER["pivot_root"]),
        c_char_p(os.fsencode(new_root)),
        c_char_p(os.fsencode(put_old)),
    )
    _check(result, "pivot_root", new_root)


def mount_setattr(dirfd: int, path: str, flags: int, attr_set: int) -> None:
    """Set attributes of a mount, of a whole tree with AT_RECURSIVE; see mount_setattr(2).

    Linux 5.12. ENOSYS before that.
    """
    attributes = struct.pack("=QQQQ", attr_set, 0, 0, 0)
    result = _syscall(
        c_long(_NUMBER["mount_setattr"]),
        c_int(dirfd),
        c_char_p(os.fsencode(path)),
        c_uint(flags),
        c_char_p(attributes),
        c_size_t(len(attributes)),
    )
    _check(result, f"mount_setattr({attr_set:#x})", path)


def openat2(dirfd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open *path* under *dirfd* with rules for how it may resolve; see openat2(2)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    result = _syscall(
        c_long(_NUMBER["openat2"]),
        c_int(dirfd),
        c_char_p(os.fsencode(path)),
        c_char_p(how),
        c_size_t(len(how)),
    )
    return _check(result, f"openat2({resolve:#x})", path)


def close_range(first: int, last: int, flags: int = 0) -> None:
    """Close a range of descriptors, or mark it close-on-exec; see close_range(2)."""
    result = _syscall(c_long(_NUMBER["close_range"]), c_uint(first), c_uint(last), c_uint(flags))
    _check(result, f"close_range({first}, {last})")


def join_session_keyring() -> None:
    """Leave the inherited session keyring for a new anonymous one; see keyctl(2)."""
    # KEYCTL_JOIN_SESSION_KEYRING is 1; ENOSYS where the kernel has no key service.
    _check(_syscall(c_long(_NUMBER["keyctl"]), c_int(1), c_void_p(None)), "keyctl")


def clone3(flags: int = 0, *, cgroup: int | None = None) -> tuple[int, int]:
    """Fork, with new namespaces or into a cgroup; see clone3(2).

    Returns (pid, pidfd) in the parent and (0, -1) in the child. *cgroup* is a
    descriptor of a cgroup2 directory. The caller must be single-threaded.
    """
    pidfd = c_int(-1)
    if cgroup is not None:
        flags |= CLONE_INTO_CGROUP
    # struct clone_args: flags pidfd child_tid parent_tid exit_signal stack stack_size tls
    # set_tid set_tid_size cgroup.
    args = struct.pack(
        "=11Q",
        flags | CLONE_PIDFD,
        ctypes.addressof(pidfd),
        0,
        0,
        _SIGCHLD,
        0,
        0,
        0,
        0,
        0,
        cgroup or 0,
    )
    buffer = ctypes.create_string_buffer(args, len(args))
    _before_fork()
    pid = _clone3(_NUMBER["clone3"], buffer, len(args))
    if pid == 0:
        _after_fork_child()
        return 0, -1
    errno = ctypes.get_errno()
    _after_fork_parent()
    if pid == -1:
        raise OSError(errno, f"clone3({flags:#x}): {os.strerror(errno)}")
    return pid, pidfd.value


def clone_paused(flags: int) -> int:
    """Start a child that waits to be killed, in the new namespaces of *flags*; return its pid.

    It shares the caller's memory (CLONE_VM), so nothing is copied, and never leaves pause(2):
    it runs no code but libc's. See clone(2).
    """
    # The stack may be shared by one that was killed and one that is new: the former returns
    # to it no more. Aligned to 16 bytes, as both architectures' calling conventions want it.
    top = (ctypes.addressof(_paused_stack) + _PAUSED_STACK_BYTES) & ~15
    return _check(_clone(_pause, top, flags | CLONE_VM | _SIGCHLD, None), f"clone({flags:#x})")


def signalfd(signals: frozenset[int]) -> int:
    """Return a non-blocking descriptor that reads the given blocked signals; see signalfd(2)."""
    mask = 0
    for number in signals:
        mask |= 1 << (number - 1)
    # SFD_NONBLOCK and SFD_CLOEXEC have the values of O_NONBLOCK and O_CLOEXEC. glibc's
    # sigset_t is 128 bytes.
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    return _check(_signalfd(-1, mask.to_bytes(128, "little"), flags), "signalfd")


def inotify_init1(flags: int = IN_CLOEXEC | IN_NONBLOCK) -> int:
    """Make an inotify instance; see inotify(7)."""
    return _check(_inotify_init1(flags), "inotify_init1")


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Watch *path* for the events in *mask*; see inotify_add_watch(2)."""
    return _check(_inotify_add_watch(fd, os.fsencode(path), mask), "inotify_add_watch", path)
