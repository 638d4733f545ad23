"""One change of one link at a time, in a namespace given by descriptor or in the caller's own.

What the runtime itself does goes through `links`, in as few messages as it takes; this is for
those who ask for single steps.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from nativert.isolation.network.messages import (
    IFF_UP,
    RTM_DELLINK,
    RTM_NEWLINK,
    RTM_SETLINK,
    hairpin,
    ifinfomsg,
)
from nativert.isolation.network.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Netlink,
    Request,
)
from nativert.isolation.network.netns import inside

T = TypeVar("T")

# netdevice(7); the address stands in a sockaddr_in, family first.
_SIOCGIFADDR: Final = 0x8915
_SIOCSIFADDR: Final = 0x8916
_SIOCGIFNETMASK: Final = 0x891B
_SIOCGIFHWADDR: Final = 0x8927
_IFREQ: Final = struct.Struct("=16s24s")
_MACVLAN_MODE_BRIDGE: Final = 4


@dataclass(frozen=True, slots=True)
class Face:
    """What a link is called and has; `ipv4` is ADDRESS/PREFIX, or empty."""

    name: str
    mac: str
    ipv4: str


def _in(netns: int | None, body: Callable[[Netlink], T]) -> T:
    def with_socket() -> T:
        with Netlink(NETLINK_ROUTE) as netlink:
            return body(netlink)

    return with_socket() if netns is None else inside(netns, with_socket)


def _set(netns: int | None, link: str, what: str, **message: Any) -> None:
    def body(netlink: Netlink) -> None:
        index = netlink.index_of(link)
        netlink.transact([Request(RTM_SETLINK, 0, ifinfomsg(index=index, **message), what, link)])

    _in(netns, body)


def _add(link: str, attrs: list[tuple[str, object]], what: str) -> None:
    message = ifinfomsg(flags=IFF_UP, attrs=[("IFLA_IFNAME", link), *attrs])
    _in(
        None,
        lambda netlink: netlink.transact(
            [Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message, what, link)]
        ),
    )


def add_veth(link: str, netns: int | None, name: str) -> None:
    """Make a veth that is up here, its peer *name* in the namespace; EEXIST."""
    peer: list[tuple[str, object]] = [("IFLA_IFNAME", name)]
    if netns is not None:
        peer.append(("IFLA_NET_NS_FD", netns))
    data = {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]}
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}
    _add(link, [("IFLA_LINKINFO", info)], "add veth")


def add_macvlan(link: str, master: str) -> None:
    """Make a macvlan in bridge mode over *master*; EEXIST, ENODEV."""
    data = {"attrs": [("IFLA_MACVLAN_MODE", _MACVLAN_MODE_BRIDGE)]}
    info = {"attrs": [("IFLA_INFO_KIND", "macvlan"), ("IFLA_INFO_DATA", data)]}
    index = _in(None, lambda netlink: netlink.index_of(master))
    _add(link, [("IFLA_LINK", index), ("IFLA_LINKINFO", info)], "add macvlan")


def delete(netns: int | None, link: str) -> None:
    """Delete a link and wait for it; ENODEV if there is none."""

    def body(netlink: Netlink) -> None:
        message = ifinfomsg(index=netlink.index_of(link))
        netlink.transact([Request(RTM_DELLINK, 0, message, "delete link", link)])

    _in(netns, body)


def rename(netns: int | None, link: str, name: str) -> None:
    """Rename a link, which is taken down for it."""
    _set(netns, link, "set link down", down=True)
    _set(netns, link, f"rename to {name}", attrs=[("IFLA_IFNAME", name)])
    _set(netns, name, "set link up", flags=IFF_UP)


def set_mac(netns: int | None, link: str, mac: str) -> None:
    """Give a link a MAC address; EADDRNOTAVAIL for one that is none."""
    _set(netns, link, f"set address {mac}", attrs=[("IFLA_ADDRESS", mac)])


def move(link: str, netns: int) -> None:
    """Move a link of this namespace into another one; it is down there."""
    _set(None, link, "move link", attrs=[("IFLA_NET_NS_FD", netns)])


def set_master(link: str, bridge: str | None) -> None:
    """Make a link a port of a bridge, or of none."""
    if bridge is None:
        _set(None, link, "take off the bridge", attrs=[("IFLA_MASTER", 0)])
        return
    master = _in(None, lambda netlink: netlink.index_of(bridge))
    _set(None, link, f"put on {bridge}", attrs=[("IFLA_MASTER", master)])
    _in(None, lambda netlink: netlink.transact([hairpin(link, netlink.index_of(link))]))


def set_up(netns: int | None, link: str) -> None:
    """Set a link up."""
    _set(netns, link, "set link up", flags=IFF_UP)


def face(netns: int | None, link: str) -> Face:
    """Return what a link has; ENODEV if there is none."""
    return _with_socket(netns, lambda sock: _face(sock, link))


def remove_ipv4(netns: int | None, link: str) -> None:
    """Take a link's IPv4 addresses away; one without any is no error."""

    def body(sock: socket.socket) -> None:
        while _face(sock, link).ipv4:
            _ioctl(sock, _SIOCSIFADDR, link, struct.pack("=H", socket.AF_INET))

    _with_socket(netns, body)


def _face(sock: socket.socket, link: str) -> Face:
    mac = _ioctl(sock, _SIOCGIFHWADDR, link)[2:8].hex(":")
    try:
        address = socket.inet_ntoa(_ioctl(sock, _SIOCGIFADDR, link)[4:8])
        mask = int.from_bytes(_ioctl(sock, _SIOCGIFNETMASK, link)[4:8], "big")
    except OSError:
        return Face(link, mac, "")  # EADDRNOTAVAIL: it has none
    return Face(link, mac, f"{address}/{mask.bit_count()}")


def _ioctl(sock: socket.socket, request: int, link: str, value: bytes = b"") -> bytes:
    try:
        answer = fcntl.ioctl(sock, request, _IFREQ.pack(link.encode()[:15], value))
    except OSError as e:
        raise OSError(e.errno, os.strerror(e.errno or 0), link) from None
    return bytes(_IFREQ.unpack(answer)[1])


def _with_socket(netns: int | None, body: Callable[[socket.socket], T]) -> T:
    def run() -> T:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            return body(sock)

    return run() if netns is None else inside(netns, run)
