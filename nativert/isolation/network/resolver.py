"""What an instance's resolv.conf(5) says, from the host's."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# A stub resolver (systemd-resolved, dnsmasq) writes its upstreams to a file of its own.
SOURCES: Final = (
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
)
_KEPT: Final = frozenset({"search", "domain", "options"})
NONE_REACHABLE: Final = (
    "# The host names no resolver that is reachable from here: only loopback or IPv6 ones.\n"
)


def resolver(sources: Sequence[str] = SOURCES) -> str:
    """Return the text of the first file that names a resolver reachable over IPv4.

    A loopback resolver of the host answers on the host's loopback only, and instances have
    no IPv6 route. Without any reachable one a comment says so.
    """
    for source in sources:
        try:
            text = Path(source).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        servers = False
        kept: list[str] = []
        for line in text.splitlines():
            words = line.split()
            if len(words) < 2:
                continue
            if words[0] == "nameserver" and _reachable(words[1]):
                servers = True
                kept.append(f"nameserver {words[1]}")
            elif words[0] in _KEPT:
                kept.append(" ".join(words))
        if servers:
            return "\n".join(kept) + "\n"
    return NONE_REACHABLE


def _reachable(server: str) -> bool:
    try:
        address = ipaddress.IPv4Address(server)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)
