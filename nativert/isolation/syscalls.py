"""System calls that Python's standard library has no wrapper for.

Functions carry the system call's name and raise `OSError`; constants carry the
header's. Only this module imports ctypes. Nothing here decides anything.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_long, c_size_t, c_uint32, c_ulong, c_void_p

TYPE_CHECKING = False  # typing costs a millisecond of every start
if TYPE_CHECKING:
    from typing import Any, Final

# linux/sched.h
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

# sys/mount.h
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

# linux/openat2.h
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# sys/inotify.h
IN_MODIFY: Final = 0x2
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_NONBLOCK: Final = 0o4000
IN_CLOEXEC: Final = 0o2000000

# linux/aio_abi.h
IOCB_CMD_FDSYNC: Final = 3
# data, key, rw_flags, opcode, reqprio, fd, buf, nbytes, offset, reserved, flags, resfd; both
# architectures have the lower half of a word first.
_IOCB: Final = struct.Struct("<QIiHhIQQqQII")
# data, obj, res, res2
_IO_EVENT: Final = struct.Struct("<QQqq")

# asm/unistd.h: the numbers above 423 are the same on every architecture.
_X86_64: Final = {
    "io_setup": 206,
    "io_destroy": 207,
    "io_getevents": 208,
    "io_submit": 209,
    "keyctl": 250,
}
_AARCH64: Final = {
    "io_setup": 0,
    "io_destroy": 1,
    "io_submit": 2,
    "io_getevents": 4,
    "keyctl": 219,
}
_COMMON: Final = {"openat2": 437}
NUMBERS: Final = {
    "x86_64": {**_X86_64, **_COMMON},
    "aarch64": {**_AARCH64, **_COMMON},
}
_NUMBER: Final = NUMBERS.get(os.uname().machine, NUMBERS["x86_64"])
# What the kernel may be asked for; tests name an older one to see the ways around.
KERNEL: Final = tuple(int(part) for part in os.environ.get("NATIVERT_KERNEL", "9.9").split(".")[:2])

_libc = ctypes.CDLL(None, use_errno=True)


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
_inotify_add_watch = _bind("inotify_add_watch", c_int, c_char_p, c_uint32)
_syscall = _libc["syscall"]
_syscall.restype = c_long


def _check(result: int, call: str, path: str | None = None) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
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


def io_setup(events: int) -> int:
    """Return a context for this many asynchronous operations at once; see io_setup(2)."""
    context = c_ulong(0)
    _check(_syscall(c_long(_NUMBER["io_setup"]), c_int(events), byref(context)), "io_setup")
    return context.value


def io_destroy(context: int) -> None:
    """Wait for what was submitted and release the context; see io_destroy(2)."""
    _check(_syscall(c_long(_NUMBER["io_destroy"]), c_ulong(context)), "io_destroy")


def io_submit_fdsync(context: int, fd: int, data: int) -> bool:
    """Have *fd* brought to the disk, as fdatasync(2) does; see io_submit(2).

    False where the context is full: `io_getevent` makes room.
    """
    # Read before the call returns, and not after.
    iocb = c_char_p(_IOCB.pack(data, 0, 0, IOCB_CMD_FDSYNC, 0, fd, 0, 0, 0, 0, 0, 0))
    number = c_long(_NUMBER["io_submit"])
    result = _syscall(number, c_ulong(context), c_long(1), byref(iocb))
    if result == -1 and ctypes.get_errno() == errno.EAGAIN:
        return False
    _check(result, "io_submit(FDSYNC)")
    return True


def io_getevent(context: int) -> tuple[int, int]:
    """Wait for one operation to end; return its data and its errno, 0 for success.

    See io_getevents(2).
    """
    event = ctypes.create_string_buffer(_IO_EVENT.size)
    number, one = c_long(_NUMBER["io_getevents"]), c_long(1)
    # EINTR where a signal came, whose Python handler has run by the next statement.
    while (result := _syscall(number, c_ulong(context), one, one, event, c_void_p(None))) != 1:
        if result != -1 or ctypes.get_errno() != errno.EINTR:
            _check(result, "io_getevents")
    data, _, outcome, _ = _IO_EVENT.unpack(event.raw)
    return data, -outcome if outcome < 0 else 0


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


def join_session_keyring() -> None:
    """Leave the inherited session keyring for a new anonymous one; see keyctl(2)."""
    # KEYCTL_JOIN_SESSION_KEYRING is 1; ENOSYS where the kernel has no key service.
    _check(_syscall(c_long(_NUMBER["keyctl"]), c_int(1), c_void_p(None)), "keyctl")


def inotify_init1(flags: int = IN_CLOEXEC | IN_NONBLOCK) -> int:
    """Make an inotify instance; see inotify(7)."""
    return _check(_inotify_init1(flags), "inotify_init1")


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Watch *path* for the events in *mask*; see inotify_add_watch(2)."""
    return _check(_inotify_add_watch(fd, os.fsencode(path), mask), "inotify_add_watch", path)
