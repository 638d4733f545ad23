"""clone3(2) for the tests' own processes, which join cgroups as applications do."""

from __future__ import annotations

import ctypes
import os
import struct
from ctypes import c_int, c_long, c_size_t, c_void_p

_CLONE_PIDFD = 0x00001000
_CLONE_INTO_CGROUP = 0x200000000
_SIGCHLD = 17
_NUMBER = 435

# Holds the GIL: the child must come back as its owner.
_syscall = ctypes.PyDLL(None, use_errno=True)["syscall"]
_syscall.restype = c_long
_syscall.argtypes = (c_long, c_void_p, c_size_t)
_before_fork = ctypes.pythonapi["PyOS_BeforeFork"]
_after_fork_child = ctypes.pythonapi["PyOS_AfterFork_Child"]
_after_fork_parent = ctypes.pythonapi["PyOS_AfterFork_Parent"]


def clone3(flags: int = 0, *, cgroup: int | None = None) -> tuple[int, int]:
    """Fork, with new namespaces or into a cgroup; see clone3(2).

    Returns (pid, pidfd) in the parent and (0, -1) in the child. *cgroup* is a
    descriptor of a cgroup2 directory. The caller must be single-threaded.
    """
    pidfd = c_int(-1)
    if cgroup is not None:
        flags |= _CLONE_INTO_CGROUP
    # struct clone_args: flags pidfd child_tid parent_tid exit_signal stack stack_size tls
    # set_tid set_tid_size cgroup.
    args = struct.pack(
        "=11Q",
        flags | _CLONE_PIDFD,
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
    pid = _syscall(_NUMBER, buffer, len(args))
    if pid == 0:
        _after_fork_child()
        return 0, -1
    errno = ctypes.get_errno()
    _after_fork_parent()
    if pid == -1:
        raise OSError(errno, f"clone3({flags:#x}): {os.strerror(errno)}")
    return pid, pidfd.value
