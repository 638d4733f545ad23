"""Kernel parameters of the calling thread's network namespace; see proc(5), /proc/sys/net."""

from __future__ import annotations

import os
from typing import Final

_ROOT: Final = "/proc/sys/net/"


def read(name: str) -> str:
    """Return the value of a parameter such as ``ipv4/ip_forward``."""
    fd = os.open(_ROOT + name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode().strip()
    finally:
        os.close(fd)


def write(name: str, value: str) -> None:
    """Set a parameter such as ``ipv4/conf/br0/route_localnet``."""
    path = _ROOT + name
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as e:
        raise OSError(e.errno, f"write {value!r}: {os.strerror(e.errno or 0)}", path) from e


def disable_ipv6(link: str) -> None:
    """Give a link no IPv6 address, where the kernel has IPv6 at all."""
    try:
        ensure(f"ipv6/conf/{link}/disable_ipv6", "1")
    except FileNotFoundError:
        pass  # a kernel without IPv6


def ensure(name: str, value: str) -> None:
    """Set a parameter unless it has the value; a write may ripple through every link."""
    if read(name) != value:
        write(name, value)
