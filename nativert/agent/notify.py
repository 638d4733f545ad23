"""What the service manager is told: the socket protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket

ADDRESS = "NOTIFY_SOCKET"


def notify(*lines: str) -> bool:
    """Send assignments such as ``READY=1``; False where nobody wants to know, or listens."""
    address = os.environ.get(ADDRESS, "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        # An abstract one: see unix(7).
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.send("\n".join(lines).encode())
        except OSError:
            return False
    return True


def watchdog_period_s() -> float | None:
    """Return how often WATCHDOG=1 is due: half of what the manager waits for; None if not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdigit() or int(microseconds) == 0 or pid != str(os.getpid()):
        return None
    return int(microseconds) / 2e6
