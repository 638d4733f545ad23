"""rtnetlink(7) messages; those that make or change a link are encoded by pyroute2.

Only this module imports it, and on first use: it takes about 90 ms and 11 MB, whichever part is
wanted. So what only looks at links, or removes one, is written and read by `netlink` alone.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from nativert.isolation.network.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    attribute,
    attributes,
)

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWADDR: Final = 20
RTM_NEWROUTE: Final = 24
RTM_NEWQDISC: Final = 36
RTM_GETSTATS: Final = 94

IFF_UP: Final = 1
RT_TABLE_MAIN: Final = 254
_RTPROT_STATIC: Final = 4
RTN_UNICAST: Final = 1
RTNH_F_ONLINK: Final = 4
_TC_H_ROOT: Final = 0xFFFFFFFF
_TBF_LATENCY_US: Final = 50_000
_TBF_MAX_BYTES_S: Final = 0xFFFFFFFF
NLA_F_NESTED: Final = 0x8000
_ALONE: Final = 32
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
_IFLA_MASTER: Final = 10
_IFLA_PROTINFO: Final = 12
IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
IFLA_INFO_KIND: Final = 1
_IFLA_BRPORT_MODE: Final = 4
U32: Final = struct.Struct("=I")
IFINFOMSG: Final = struct.Struct("=BxHiII")


@dataclass(frozen=True, slots=True)
class Inside:
    """How an interface looks inside its namespace; no gateway, no default route."""

    name: str
    address: str
    prefix: int
    gateway: str = ""
    metric: int = 0
    rate_mbit: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of a link."""

    index: int
    name: str
    kind: str
    alias: str
    master: int
    up: bool
    mtu: int = 0


def _encode(message: Any) -> bytes:
    message.encode()
    return bytes(message.data)[16:]  # netlink writes the header


def ifinfomsg(
    *, index: int = 0, flags: int = 0, down: bool = False, attrs: Sequence[Any] = ()
) -> bytes:
    """Return a link message; `flags` IFF_UP or `down` sets its state, neither leaves it."""
    change = IFF_UP if flags or down else 0
    if not attrs:
        return IFINFOMSG.pack(0, 0, index, flags, change)
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg()
    message["index"] = index
    message["flags"] = flags
    message["change"] = change
    message["attrs"] = list(attrs)
    return _encode(message)


def bridges_request() -> Request:
    """List the bridges of a namespace."""
    # The kernel filters by kind: a host with a thousand veths answers with the bridges only.
    body = ifinfomsg() + attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"bridge"))
    return Request(RTM_GETLINK, NLM_F_DUMP, body, "list bridges")


def ports_request(bridge: int) -> Request:
    """List the ports of a bridge."""
    body = ifinfomsg() + attribute(_IFLA_MASTER, U32.pack(bridge))
    return Request(RTM_GETLINK, NLM_F_DUMP, body, "list ports")


def decode_link(body: bytes) -> Link:
    """Return what an RTM_NEWLINK answer says."""
    _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
    found = attributes(body[IFINFOMSG.size :])
    info = attributes(found.get(IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=_text(found[IFLA_IFNAME]),
        kind=_text(info.get(IFLA_INFO_KIND, b"")),
        alias=_text(found.get(_IFLA_IFALIAS, b"")),
        master=_u32(found.get(_IFLA_MASTER)),
        up=bool(flags & IFF_UP),
        mtu=_u32(found.get(IFLA_MTU)),
    )


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")


def _u32(value: bytes | None) -> int:
    number: int = U32.unpack(value)[0] if value else 0
    return number


def address_request(index: int, name: str, address: str, prefix: int) -> Request:
    """Add an IPv4 address; EEXIST if the link has it."""
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    network = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
    message = ifaddrmsg()
    message["family"] = socket.AF_INET
    message["prefixlen"] = prefix
    message["index"] = index
    message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    if prefix < _ALONE:
        message["attrs"].append(("IFA_BROADCAST", str(network.broadcast_address)))
    flags = NLM_F_CREATE | NLM_F_EXCL
    what = f"add address {address}/{prefix}"
    return Request(RTM_NEWADDR, flags, _encode(message), what, name)


def hairpin(link: str, index: int) -> Request:
    """Let a bridge port send back what it received."""
    # With br_netfilter (Docker loads it) a translated frame stays in the bridge, which else
    # never sends back to where it came from: an instance could not reach its own public port.
    # Written by hand: pyroute2 leaves the nested flag out, and the kernel then reads a state.
    body = IFINFOMSG.pack(socket.AF_BRIDGE, 0, index, 0, 0)
    body += attribute(_IFLA_PROTINFO | NLA_F_NESTED, attribute(_IFLA_BRPORT_MODE, b"\1"))
    return Request(RTM_SETLINK, 0, body, "set hairpin mode", link)


def inside_requests(interface: Inside, index: int) -> list[Request]:
    """Address an interface, set it up, shape it and route by it, in this order."""
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    name = interface.name
    requests = [
        address_request(index, name, interface.address, interface.prefix),
        Request(RTM_SETLINK, 0, ifinfomsg(index=index, flags=IFF_UP), "set link up", name),
    ]
    if interface.rate_mbit:
        requests.append(tbf(name, index, interface.rate_mbit))
    if interface.gateway:
        message = rtmsg()
        message["family"] = socket.AF_INET
        message["table"] = RT_TABLE_MAIN
        message["proto"] = _RTPROT_STATIC
        message["type"] = RTN_UNICAST
        if interface.prefix == _ALONE:
            # No network of the interface's has the gateway in it.
            message["flags"] = RTNH_F_ONLINK
        message["attrs"] = [
            ("RTA_GATEWAY", interface.gateway),
            ("RTA_OIF", index),
            ("RTA_PRIORITY", interface.metric),
        ]
        flags = NLM_F_CREATE | NLM_F_EXCL
        what = f"add default route by {interface.gateway}"
        requests.append(Request(RTM_NEWROUTE, flags, _encode(message), what, name))
    return requests


def tbf(link: str, index: int, rate_mbit: int) -> Request:
    """Limit what leaves by a link; see tc-tbf(8). OSError above what its 32 bits hold."""
    from pyroute2.netlink.rtnl.tcmsg import tcmsg
    from pyroute2.netlink.rtnl.tcmsg.sched_tbf import get_parameters

    rate_bytes_s = rate_mbit * 125_000
    if rate_bytes_s > _TBF_MAX_BYTES_S:
        raise OSError(errno.ERANGE, f"set tbf {rate_mbit} Mbit/s: above 34359 Mbit/s", link)
    # 10 ms of traffic, and no less than a few packets: less than the timer's step would throttle.
    burst_bytes = max(10_000, rate_bytes_s // 100)
    message = tcmsg()
    message["index"] = index
    message["handle"] = 0x10000
    message["parent"] = _TC_H_ROOT
    options = {"rate": rate_bytes_s, "burst": burst_bytes, "latency": _TBF_LATENCY_US}
    message["attrs"] = [("TCA_KIND", "tbf"), ("TCA_OPTIONS", get_parameters(options))]
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return Request(RTM_NEWQDISC, flags, _encode(message), f"set tbf {rate_mbit} Mbit/s", link)
