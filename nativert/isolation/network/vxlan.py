"""A tunnel link to other hosts: which frames go to whom is written down, nothing is learned.

See ip-link(8), type vxlan, and RFC 7348. Nothing here broadcasts: each neighbour has a permanent
entry, and the link knows no others.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nativert.isolation.network.messages import (
    IFINFOMSG,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    NLA_F_NESTED,
    RTM_NEWLINK,
    U32,
)
from nativert.isolation.network.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Netlink,
    Request,
    attribute,
    attributes,
)

# RFC 7348: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 bytes.
OVERHEAD_BYTES: Final = 50

_RTM_GETADDR: Final = 22
_RTM_NEWNEIGH: Final = 28
_IFA_LOCAL: Final = 2
_IFLA_ADDRESS: Final = 1
_IFLA_INFO_DATA: Final = 2
_IFLA_VXLAN_ID: Final = 1
_IFLA_VXLAN_LOCAL: Final = 4
_IFLA_VXLAN_LEARNING: Final = 7
_IFLA_VXLAN_PORT: Final = 15
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NUD_PERMANENT: Final = 0x80
_NTF_SELF: Final = 0x02
_IFADDRMSG: Final = struct.Struct("=BBBBi")
_NDMSG: Final = struct.Struct("=BxxxiHBB")


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What the link is made with; `local` is the IPv4 address at which others reach it."""

    vni: int
    local: str
    port: int
    mac: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The far end of the tunnel to one host: its inner address and MAC, its outer address."""

    address: str
    mac: str
    remote: str


def add(netlink: Netlink, name: str, tunnel: Tunnel) -> None:
    """Make the link; EEXIST if the name, or the VNI on that port, is taken."""
    data = attribute(_IFLA_VXLAN_ID, U32.pack(tunnel.vni))
    data += attribute(_IFLA_VXLAN_LOCAL, _packed(tunnel.local))
    data += attribute(_IFLA_VXLAN_LEARNING, b"\0")
    data += attribute(_IFLA_VXLAN_PORT, tunnel.port.to_bytes(2, "big"))
    info = attribute(IFLA_INFO_KIND, b"vxlan") + attribute(_IFLA_INFO_DATA | NLA_F_NESTED, data)
    body = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    body += attribute(IFLA_IFNAME, name.encode() + b"\0")
    body += attribute(_IFLA_ADDRESS, _mac(tunnel.mac))
    body += attribute(IFLA_MTU, U32.pack(tunnel.mtu))
    body += attribute(IFLA_LINKINFO | NLA_F_NESTED, info)
    flags = NLM_F_CREATE | NLM_F_EXCL
    netlink.transact([Request(RTM_NEWLINK, flags, body, "add vxlan", name)])


def set_neighbours(
    netlink: Netlink, name: str, index: int, neighbours: Sequence[Neighbour]
) -> None:
    """Enter where each is; one that is there already is put in its place."""
    flags = NLM_F_CREATE | NLM_F_REPLACE
    requests: list[Request] = []
    for one in neighbours:
        arp = _NDMSG.pack(socket.AF_INET, index, _NUD_PERMANENT, 0, 0)
        arp += attribute(_NDA_DST, _packed(one.address)) + attribute(_NDA_LLADDR, _mac(one.mac))
        requests.append(Request(_RTM_NEWNEIGH, flags, arp, f"set neighbour {one.address}", name))
        fdb = _NDMSG.pack(socket.AF_BRIDGE, index, _NUD_PERMANENT, _NTF_SELF, 0)
        fdb += attribute(_NDA_LLADDR, _mac(one.mac)) + attribute(_NDA_DST, _packed(one.remote))
        requests.append(Request(_RTM_NEWNEIGH, flags, fdb, f"set remote {one.remote}", name))
    netlink.transact(requests)


def index_with(netlink: Netlink, address: str) -> int | None:
    """Return the index of the link that has an IPv4 address, or None."""
    wanted = _packed(address)
    body = _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0)
    for found in netlink.transact([Request(_RTM_GETADDR, NLM_F_DUMP, body, "list addresses")])[0]:
        if attributes(found[_IFADDRMSG.size :]).get(_IFA_LOCAL) == wanted:
            return int(_IFADDRMSG.unpack_from(found)[4])
    return None


def open_netlink() -> Netlink:
    """Return a socket for all of this, of the calling thread's namespace."""
    return Netlink(NETLINK_ROUTE)


def _packed(address: str) -> bytes:
    return ipaddress.IPv4Address(address).packed


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
