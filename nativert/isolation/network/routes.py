"""IPv4 routes of the main table that one writer keeps: told from others by their protocol number.

See rtnetlink(7) and ip-route(8).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nativert.isolation.network.messages import (
    RT_TABLE_MAIN,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTNH_F_ONLINK,
    U32,
)
from nativert.isolation.network.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    Netlink,
    Request,
    attribute,
    attributes,
)

# Below 128 are those of well-known daemons; see /etc/iproute2/rt_protos.
PROTOCOL: Final = 0xB7

_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PREFSRC: Final = 7
_RT_SCOPE_UNIVERSE: Final = 0
_RT_SCOPE_LINK: Final = 253
_RT_SCOPE_NOWHERE: Final = 255
# family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RTMSG: Final = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets to a network go: out of a link (by index), to a gateway or to itself."""

    destination: ipaddress.IPv4Network
    link: int
    gateway: str = ""


def kept(netlink: Netlink) -> set[Route]:
    """Return the routes that have our protocol number."""
    body = _RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    found: set[Route] = set()
    for answer in netlink.transact([Request(_RTM_GETROUTE, NLM_F_DUMP, body, "list routes")])[0]:
        _, length, _, _, table, protocol, *_ = _RTMSG.unpack_from(answer)
        if table != RT_TABLE_MAIN or protocol != PROTOCOL:
            continue
        parts = attributes(answer[_RTMSG.size :])
        if _RTA_DST not in parts or _RTA_OIF not in parts:
            continue
        gateway = parts.get(_RTA_GATEWAY)
        found.add(
            Route(
                destination=ipaddress.IPv4Network((parts[_RTA_DST], length)),
                link=U32.unpack(parts[_RTA_OIF])[0],
                gateway="" if gateway is None else str(ipaddress.IPv4Address(gateway)),
            )
        )
    return found


def replace(netlink: Netlink, routes: Iterable[Route], *, source: str) -> None:
    """Set routes, each in the place of one to the same network; *source* is the host's address."""
    netlink.transact(
        [
            Request(
                RTM_NEWROUTE,
                NLM_F_CREATE | NLM_F_REPLACE,
                _body(route) + attribute(_RTA_PREFSRC, ipaddress.IPv4Address(source).packed),
                f"set route to {route.destination}",
                route.gateway,
            )
            for route in routes
        ]
    )


def delete(netlink: Netlink, routes: Iterable[Route]) -> None:
    """Delete routes; one that is gone, or leads elsewhere by now, is no error."""
    for route in routes:
        what = f"delete route to {route.destination}"
        try:
            netlink.transact([Request(_RTM_DELROUTE, 0, _body(route, delete=True), what)])
        except OSError as e:
            if e.errno != errno.ESRCH:
                raise


def _body(route: Route, *, delete: bool = False) -> bytes:
    scope = _RT_SCOPE_UNIVERSE if route.gateway else _RT_SCOPE_LINK
    body = _RTMSG.pack(
        socket.AF_INET,
        route.destination.prefixlen,
        0,
        0,
        RT_TABLE_MAIN,
        PROTOCOL,
        _RT_SCOPE_NOWHERE if delete else scope,
        RTN_UNICAST,
        # The gateway is on the link, though no address of the link says so.
        RTNH_F_ONLINK if route.gateway and not delete else 0,
    )
    body += attribute(_RTA_DST, route.destination.network_address.packed)
    body += attribute(_RTA_OIF, U32.pack(route.link))
    if route.gateway:
        body += attribute(_RTA_GATEWAY, ipaddress.IPv4Address(route.gateway).packed)
    return body
