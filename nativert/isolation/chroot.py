"""Coming out of a chroot without leaving its tree.

The kernel makes no user namespace for a process whose root directory is not that of its
mount namespace (EPERM in clone(2)). A chroot is that. Its tree is made the root of a mount
namespace of one's own.
"""

from __future__ import annotations

import os

from nativert.isolation.syscalls import (
    CLONE_NEWNS,
    MS_BIND,
    MS_REC,
    MS_SLAVE,
    mount,
    setns,
    unshare,
)


def chrooted() -> bool:
    """Tell whether the root directory is not the mount namespace's; single-threaded callers."""
    pid = os.fork()
    if pid == 0:
        # Looked at by a child: it cannot come back.
        differs = 2
        try:
            differs = int(_differs())
        finally:
            os._exit(differs)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 1


def _differs() -> bool:
    about = os.open("/proc/self/fdinfo", os.O_RDONLY | os.O_DIRECTORY)
    here = os.open("/", os.O_PATH | os.O_DIRECTORY)
    _enter_namespace_root()
    there = os.open("/", os.O_PATH | os.O_DIRECTORY)
    # The same directory may be mounted in several places: the mount is compared too.
    return not os.path.samestat(os.fstat(here), os.fstat(there)) or (
        _mount_of(about, here) != _mount_of(about, there)
    )


def _mount_of(about: int, fd: int) -> str:
    with open(os.open(str(fd), os.O_RDONLY, dir_fd=about)) as file:
        lines = dict(line.split(":", 1) for line in file)
    return lines["mnt_id"].strip()


def _enter_namespace_root() -> None:
    # setns(2) to a mount namespace, one's own included, moves root and working directory to
    # the namespace's root.
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace, CLONE_NEWNS)
    finally:
        os.close(namespace)


def make_root() -> None:
    """Make the root directory the root of a new mount namespace, a slave of the present one."""
    unshare(CLONE_NEWNS)
    tree = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _enter_namespace_root()
        mount("none", "/", flags=MS_REC | MS_SLAVE)
        os.fchdir(tree)
    finally:
        os.close(tree)
    mount(".", "/", flags=MS_BIND | MS_REC)
    # Only a step up from the root notices what is mounted over it.
    os.chdir("/..")
    os.chroot(".")
