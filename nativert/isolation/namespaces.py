"""The namespaces that an instance owns, and the helper process that creates them.

The network, UTS and IPC namespaces belong to the instance's user namespace, so a
capability granted there works on them. Only the application enters the user
namespace; init stays host root, out of the application's reach. The PID and mount
namespaces belong to the host's user namespace and come with init itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import struct

from nativert.isolation.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    clone_paused,
    setns,
)

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Final

_NAMES: Final = {
    "user": CLONE_NEWUSER,
    "net": CLONE_NEWNET,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
}
# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


def create(id_base: int, id_count: int, *, network: bool, reap: bool = True) -> dict[str, int]:
    """Create user, UTS, IPC and (with *network*) network namespaces; return descriptors.

    Ids 0..id_count-1 inside are id_base.. on the host; see user_namespaces(7). Without
    *reap* it leaves a dead child to a caller who reaps all of its own: waiting for the
    scheduler takes milliseconds on a busy machine.
    """
    if not 0 < id_base <= (1 << 32) - id_count:
        # The kernel takes the number modulo 2**32: it could become the host's root.
        raise OSError(errno.EINVAL, f"no range of host ids: {id_base}, {id_count}")
    names = [name for name in _NAMES if network or name != "net"]
    flags = 0
    for name in names:
        flags |= _NAMES[name]
    # Exists only until its namespaces are held by descriptor. The maps are written from
    # outside: within there is no right to map other ids than one's own.
    pid = clone_paused(flags)
    held: dict[str, int] = {}
    try:
        for table in ("uid_map", "gid_map"):
            fd = os.open(f"/proc/{pid}/{table}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                # One write: the kernel takes a map only as a whole.
                os.write(fd, f"0 {id_base} {id_count}".encode())
            finally:
                os.close(fd)
        for name in names:
            held[name] = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        for fd in held.values():
            os.close(fd)
        raise
    finally:
        os.kill(pid, signal.SIGKILL)
        if reap:
            os.waitpid(pid, 0)
    return held


def join(held: dict[str, int]) -> None:
    """Enter the namespaces in *held*, except the user namespace."""
    for name, fd in held.items():
        if name != "user":
            setns(fd, _NAMES[name])


def loopback_up() -> None:
    """Set the loopback interface of the current network namespace up; see netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("H", answer, 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def allow_unprivileged_network(id_base: int, id_count: int) -> None:
    """Let every id of the instance bind low ports and send ICMP echo; see ip(7), icmp(7).

    nginx on port 80 needs this, because the application has no capabilities.
    """
    # Group ids are those of the writer's user namespace: the host's.
    for name, value in (
        ("ip_unprivileged_port_start", "0"),
        ("ping_group_range", f"{id_base} {id_base + id_count - 1}"),
    ):
        fd = os.open(f"/proc/sys/net/ipv4/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
