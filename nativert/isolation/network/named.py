"""Network namespaces that have a name under /run/netns, as ip-netns(8) makes them.

A name is a mount: it keeps the namespace alive when no process is left in it.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from typing import Final

from nativert.isolation.syscalls import CLONE_NEWNET, MNT_DETACH, MS_BIND, mount, umount2, unshare

DIRECTORY: Final = "/run/netns"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def path_of(name: str) -> str:
    """Return the path of a name; EINVAL for one that is no single file name."""
    if not _NAME.fullmatch(name):
        raise OSError(errno.EINVAL, "not the name of a network namespace", name)
    return f"{DIRECTORY}/{name}"


def pin(netns: int, name: str) -> None:
    """Give the namespace of a descriptor a name; EEXIST if it is taken."""
    path = path_of(name)
    os.makedirs(DIRECTORY, mode=0o755, exist_ok=True)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        mount(f"/proc/self/fd/{netns}", path, flags=MS_BIND)
    except OSError:
        os.unlink(path)
        raise


def unpin(name: str) -> None:
    """Take a name away; safe when absent."""
    path = path_of(name)
    try:
        umount2(path, MNT_DETACH)
    except OSError as e:
        # Not mounted: its maker died between the file and the mount.
        if e.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def names(prefix: str) -> list[str]:
    """Return the names that start with *prefix*."""
    try:
        found = os.listdir(DIRECTORY)
    except FileNotFoundError:
        return []
    return sorted(name for name in found if name.startswith(prefix))


def open_named(name: str) -> int:
    """Return a descriptor of a named namespace; ENOENT if there is none."""
    return os.open(path_of(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def create(name: str) -> None:
    """Make a namespace that has only its name; EEXIST if it is taken."""
    failures: list[BaseException] = []

    def body() -> None:
        # unshare(CLONE_NEWNET) is per thread; the thread ends, the name stays.
        try:
            unshare(CLONE_NEWNET)
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                pin(fd, name)
            finally:
                os.close(fd)
        except BaseException as e:  # noqa: BLE001 - raised again by the caller's thread
            failures.append(e)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
