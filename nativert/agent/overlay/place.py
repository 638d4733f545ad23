"""At which address of this host the tunnels of other nodes end."""

from __future__ import annotations

import ipaddress
import socket

from nativert.agent.config import Config

# For documentation (RFC 5737): nothing is sent, the kernel is asked for the way.
_ANYWHERE = "192.0.2.1"


def of(config: Config) -> str | None:
    """Return the address, None where this node can have no part in an overlay.

    The one that is configured, or that others connect to; where they connect to any, the one by
    which this host goes to them.
    """
    if config.zenoh is None:
        return None
    wanted = config.overlay.enabled
    if not (wanted if wanted is not None else config.zenoh.tls is None):
        return None
    if config.overlay.address:
        return config.overlay.address
    hosts = [ip for each in config.zenoh.listen if (ip := _ip(each)) is not None]
    own = next((ip for ip in hosts if not ip.is_loopback and not ip.is_unspecified), None)
    if own is not None:
        return str(own)
    if not any(ip.is_unspecified for ip in hosts):
        return None
    others = [str(ip) for each in config.zenoh.connect if (ip := _ip(each)) is not None]
    return next((found for each in (*others, _ANYWHERE) if (found := _towards(each))), None)


def _ip(endpoint: str) -> ipaddress.IPv4Address | None:
    """Return the address of an endpoint such as tcp/10.0.0.1:7447; None for a name, or IPv6."""
    host = endpoint.partition("/")[2].partition("#")[0].rpartition(":")[0].strip("[]")
    if host == "::":
        return ipaddress.IPv4Address(0)  # any, of IPv4 too
    try:
        return ipaddress.IPv4Address(host)
    except ValueError:
        return None


def _towards(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return ""  # no route
        found = str(probe.getsockname()[0])
    return "" if ipaddress.IPv4Address(found).is_loopback else found
