"""Whether a port of the host is free, asked by binding it; see bind(2), ip(7)."""

from __future__ import annotations

import errno
import socket


def is_free(host_ip: str | None, port: int, protocol: str) -> bool:
    """Return whether nobody listens on the port; EADDRNOTAVAIL if the address is not ours."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as probe:
        if protocol == "tcp":
            # Connections of an earlier listener that wait in TIME_WAIT do not hold the port;
            # a listener does, with this option too. For UDP the option would hide it.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host_ip or "", port))
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                return False
            raise OSError(e.errno, f"bind {protocol} port {port}: {e.strerror}", host_ip) from None
    return True
