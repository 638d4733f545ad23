"""System calls that Python's standard library has no wrapper for.

Functions carry the system call's name and raise `OSError`; constants carry the
header's. Only this module imports ctypes, which takes three milliseconds, and with the first
call only: many a command makes none. Nothing here decides anything.
"""

from __future__ import annotations

import errno
import functools
import os
import struct

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


@functools.cache
def _library() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def _libc(name: str, *argtypes: str) -> Any:
    # Declared types let ctypes refuse a str or a lost pointer before libc sees it.
    import ctypes

    function = _library()[name]
    function.argtypes = [getattr(ctypes, kind) for kind in argtypes]
    return function


@functools.cache
def _syscall() -> Any:
    import ctypes

    function = _library()["syscall"]
    function.restype = ctypes.c_long
    return function


def _raw(name: str, *arguments: Any) -> int:
    """Make a system call by its number, see syscall(2); bytes are pointers to them."""
    import ctypes

    # Every argument is as wide as a register; ctypes takes a bare int for 32 bits.
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result: int = _syscall()(ctypes.c_long(_NUMBER[name]), *wide)
    return result


def _errno() -> int:
    import ctypes

    return ctypes.get_errno()


def _check(result: int, call: str, path: str | None = None) -> int:
    if result == -1:
        number = _errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
    return result


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces; see unshare(2)."""
    # CLONE_NEWPID applies to children created later, so the caller must fork.
    _check(_libc("unshare", "c_int")(flags), f"unshare({flags:#x})")


def setns(fd: int, nstype: int) -> None:
    """Move the calling thread into the namespace that *fd* refers to; see setns(2)."""
    _check(_libc("setns", "c_int", "c_int")(fd, nstype), f"setns({nstype:#x})")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """Attach a filesystem, or change how mounts propagate; see mount(2)."""
    call = _libc("mount", "c_char_p", "c_char_p", "c_char_p", "c_ulong", "c_char_p")
    result = call(
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
    result = _libc("umount2", "c_char_p", "c_int")(os.fsencode(target), flags)
    _check(result, f"umount2({flags:#x})", target)


def syncfs(fd: int) -> None:
    """Write all that waits of the file system of *fd* to its disk; see syncfs(2)."""
    _check(_libc("syncfs", "c_int")(fd), "syncfs")


def io_setup(events: int) -> int:
    """Return a context for this many asynchronous operations at once; see io_setup(2)."""
    from ctypes import byref, c_ulong

    context = c_ulong(0)
    _check(_raw("io_setup", events, byref(context)), "io_setup")
    return context.value


def io_destroy(context: int) -> None:
    """Wait for what was submitted and release the context; see io_destroy(2)."""
    _check(_raw("io_destroy", context), "io_destroy")


def io_submit_fdsync(context: int, fd: int, data: int) -> bool:
    """Have *fd* brought to the disk, as fdatasync(2) does; see io_submit(2).

    False where the context is full: `io_getevent` makes room.
    """
    import ctypes  # A form with `from` looks each name up, at every call.

    # Read before the call returns, and not after.
    iocb = ctypes.c_char_p(_IOCB.pack(data, 0, 0, IOCB_CMD_FDSYNC, 0, fd, 0, 0, 0, 0, 0, 0))
    result = _raw("io_submit", context, 1, ctypes.byref(iocb))
    if result == -1 and _errno() == errno.EAGAIN:
        return False
    _check(result, "io_submit(FDSYNC)")
    return True


def io_getevent(context: int) -> tuple[int, int]:
    """Wait for one operation to end; return its data and its errno, 0 for success.

    See io_getevents(2).
    """
    import ctypes

    event = ctypes.create_string_buffer(_IO_EVENT.size)
    # EINTR where a signal came, whose Python handler has run by the next statement.
    while (result := _raw("io_getevents", context, 1, 1, event, None)) != 1:
        if result != -1 or _errno() != errno.EINTR:
            _check(result, "io_getevents")
    data, _, outcome, _ = _IO_EVENT.unpack(event.raw)
    return data, -outcome if outcome < 0 else 0


def openat2(dirfd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open *path* under *dirfd* with rules for how it may resolve; see openat2(2)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    result = _raw("openat2", dirfd, os.fsencode(path), how, len(how))
    return _check(result, f"openat2({resolve:#x})", path)


def join_session_keyring() -> None:
    """Leave the inherited session keyring for a new anonymous one; see keyctl(2)."""
    # KEYCTL_JOIN_SESSION_KEYRING is 1; ENOSYS where the kernel has no key service.
    _check(_raw("keyctl", 1, None), "keyctl")


def inotify_init1(flags: int = IN_CLOEXEC | IN_NONBLOCK) -> int:
    """Make an inotify instance; see inotify(7)."""
    return _check(_libc("inotify_init1", "c_int")(flags), "inotify_init1")


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Watch *path* for the events in *mask*; see inotify_add_watch(2)."""
    call = _libc("inotify_add_watch", "c_int", "c_char_p", "c_uint32")
    return _check(call(fd, os.fsencode(path), mask), "inotify_add_watch", path)
