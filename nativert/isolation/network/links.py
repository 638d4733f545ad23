"""The bridge, veth pairs, addresses, routes and shaping of one node, by rtnetlink(7).

pyroute2 encodes and decodes the messages; `netlink` carries them. It is imported on first use:
it takes about 90 ms, whichever part of it is wanted.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from nativert.isolation.network import sysctl
from nativert.isolation.network.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Netlink,
    Request,
    attribute,
)
from nativert.isolation.network.netns import inside

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWADDR: Final = 20
RTM_NEWROUTE: Final = 24
RTM_NEWQDISC: Final = 36
RTM_GETSTATS: Final = 94

_IFF_UP: Final = 1
_RT_TABLE_MAIN: Final = 254
_RTPROT_STATIC: Final = 4
_RTN_UNICAST: Final = 1
_TC_H_ROOT: Final = 0xFFFFFFFF
_TBF_LATENCY_US: Final = 50_000
_TBF_MAX_BYTES_S: Final = 0xFFFFFFFF
_IFLA_STATS_FILTER_LINK_64: Final = 1

_NLA_F_NESTED: Final = 0x8000
_IFLA_PROTINFO: Final = 12
_IFLA_BRPORT_MODE: Final = 4

_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IF_STATS_MSG: Final = struct.Struct("=BBHII")
# rtnl_link_stats64: rx_packets tx_packets rx_bytes tx_bytes rx_errors tx_errors rx_dropped
# tx_dropped; more follows. Before it: if_stats_msg and one attribute's header.
_STATS64: Final = struct.Struct("=8Q")
_STATS64_OFFSET: Final = _IF_STATS_MSG.size + 4


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


@dataclass(frozen=True, slots=True)
class Stats:
    """Traffic of a link in bytes and packets, as its own side counts it."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


class Links:
    """Links of the namespace in which it was made, and of namespaces given by descriptor."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_ROUTE)

    def close(self) -> None:
        """Close the socket; safe twice."""
        self._netlink.close()

    def add_bridge(self, name: str, mac: str) -> None:
        """Make a bridge that is up and keeps its MAC; EEXIST if the name is taken."""
        # Without an address of its own a bridge takes the lowest of its ports' and changes it
        # when they come and go, which spoils every neighbour's ARP cache.
        message = _ifinfmsg(
            flags=_IFF_UP,
            attrs=[
                ("IFLA_IFNAME", name),
                ("IFLA_ADDRESS", mac),
                ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]}),
            ],
        )
        self._netlink.transact(
            [Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message, "add bridge", name)]
        )

    def add_veth(self, link: str, *, master: int, netns: int, name: str, mac: str) -> int:
        """Make a veth on a bridge, its peer born in the namespace; return the host's index."""
        # The peer gets its final name and MAC at birth: moved or renamed later, it would meet
        # names of the host, and each step would take the rtnl lock again.
        peer = [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_NET_NS_FD", netns)]
        info = [
            ("IFLA_INFO_KIND", "veth"),
            ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]}),
        ]
        message = _ifinfmsg(
            flags=_IFF_UP,
            attrs=[
                ("IFLA_IFNAME", link),
                ("IFLA_MASTER", master),
                ("IFLA_LINKINFO", {"attrs": info}),
            ],
        )
        self._netlink.transact(
            [Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message, "add veth", link)]
        )
        index = self._netlink.index_of(link)
        try:
            self._netlink.transact([_hairpin(link, index)])
        except OSError:
            self.delete(index, link)
            raise
        return index

    def add_address(self, link: str, address: str, prefix: int) -> None:
        """Give a link an IPv4 address; one that it has already is no error."""
        request = _address(self._netlink.index_of(link), link, address, prefix)
        try:
            self._netlink.transact([request])
        except FileExistsError:
            pass

    def bring_up(self, link: str, alias: str) -> None:
        """Set a link up and label it."""
        message = _ifinfmsg(
            index=self._netlink.index_of(link), flags=_IFF_UP, attrs=[("IFLA_IFALIAS", alias)]
        )
        self._netlink.transact([Request(RTM_SETLINK, 0, message, "set link up", link)])

    def configure(self, netns: int, interfaces: Sequence[Inside]) -> None:
        """Address interfaces inside a namespace, set them up and route by them."""

        def body() -> None:
            with Netlink(NETLINK_ROUTE) as netlink:
                requests: list[Request] = []
                for interface in interfaces:
                    # The peer's index asked for at creation is ignored by the kernel.
                    requests += _inside(interface, netlink.index_of(interface.name))
                    _refuse_advertisements(interface.name)
                netlink.transact(requests)

        inside(netns, body)

    def shape(self, link: str, index: int, rate_mbit: int) -> None:
        """Limit what leaves by a link; ENOENT if the kernel has no tbf. See tc-tbf(8)."""
        self._netlink.transact([_tbf(link, index, rate_mbit)])

    def cut(self, links: Sequence[tuple[int, str]], group: int) -> None:
        """Take links (index, name) down and off their bridge, into a group to delete at once."""
        for index, name in links:
            message = _ifinfmsg(
                index=index,
                down=True,
                attrs=[("IFLA_MASTER", 0), ("IFLA_GROUP", group)],
            )
            try:
                self._netlink.transact([Request(RTM_SETLINK, 0, message, "cut link", name)])
            except OSError as e:
                if e.errno != errno.ENODEV:
                    raise

    def delete(self, index: int, name: str) -> None:
        """Delete a link and wait for it, 15-60 ms; one that is gone is no error."""
        message = _ifinfmsg(index=index)
        try:
            self._netlink.transact([Request(RTM_DELLINK, 0, message, "delete link", name)])
        except OSError as e:
            if e.errno != errno.ENODEV:
                raise

    def find(self, name: str) -> Link | None:
        """Return the link of a name, or None."""
        try:
            index = self._netlink.index_of(name)
            request = Request(RTM_GETLINK, 0, _ifinfmsg(index=index), "get link", name)
            return _link(self._netlink.transact([request])[0][0])
        except OSError as e:
            if e.errno == errno.ENODEV:
                return None
            raise

    def index_of(self, name: str) -> int | None:
        """Return the index of the link of a name, or None."""
        try:
            return self._netlink.index_of(name)
        except OSError as e:
            if e.errno == errno.ENODEV:
                return None
            raise

    def name_of(self, index: int) -> str | None:
        """Return the name of the link of an index, or None."""
        try:
            return self._netlink.name_of(index)
        except OSError as e:
            if e.errno == errno.ENODEV:
                return None
            raise

    def names(self) -> list[str]:
        """Return the name of every link of the calling thread's namespace."""
        return [name for _, name in socket.if_nameindex()]

    def bridges(self) -> list[Link]:
        """Return every bridge of the namespace."""
        # The kernel filters by kind: a host with a thousand veths answers with the bridges only.
        kind = [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]})]
        request = Request(RTM_GETLINK, NLM_F_DUMP, _ifinfmsg(attrs=kind), "list bridges")
        return [_link(body) for body in self._netlink.transact([request])[0]]

    def stats(self, links: Sequence[tuple[int, str]]) -> list[Stats]:
        """Return the counters of links (index, name); ENODEV if one is gone."""
        requests = [
            Request(
                RTM_GETSTATS,
                0,
                _IF_STATS_MSG.pack(0, 0, 0, index, _IFLA_STATS_FILTER_LINK_64),
                "get statistics",
                name,
            )
            for index, name in links
        ]
        answers = self._netlink.transact(requests) if requests else []
        return [Stats(*_STATS64.unpack_from(bodies[0], _STATS64_OFFSET)) for bodies in answers]


def delete_group(netlink: Netlink, group: int) -> None:
    """Delete every link of a group in one go; an empty group is no error."""
    # One wait of 15-60 ms for all of them instead of one for each.
    message = _ifinfmsg(attrs=[("IFLA_GROUP", group)])
    try:
        netlink.transact([Request(RTM_DELLINK, 0, message, "delete group", str(group))])
    except OSError as e:
        if e.errno != errno.ENODEV:
            raise


def _encode(message: Any) -> bytes:
    message.encode()
    return bytes(message.data)[16:]  # netlink writes the header


def _ifinfmsg(
    *, index: int = 0, flags: int = 0, down: bool = False, attrs: Sequence[Any] = ()
) -> bytes:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg()
    message["index"] = index
    message["flags"] = flags
    message["change"] = _IFF_UP if flags or down else 0
    message["attrs"] = list(attrs)
    return _encode(message)


def _link(body: bytes) -> Link:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg(struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, 0, 0, 0) + body)
    message.decode()
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        master=message.get_attr("IFLA_MASTER") or 0,
        up=bool(message["flags"] & _IFF_UP),
    )


def _address(index: int, name: str, address: str, prefix: int) -> Request:
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    network = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
    message = ifaddrmsg()
    message["family"] = socket.AF_INET
    message["prefixlen"] = prefix
    message["index"] = index
    message["attrs"] = [
        ("IFA_LOCAL", address),
        ("IFA_ADDRESS", address),
        ("IFA_BROADCAST", str(network.broadcast_address)),
    ]
    flags = NLM_F_CREATE | NLM_F_EXCL
    what = f"add address {address}/{prefix}"
    return Request(RTM_NEWADDR, flags, _encode(message), what, name)


def _hairpin(link: str, index: int) -> Request:
    # With br_netfilter (Docker loads it) a translated frame stays in the bridge, which else
    # never sends back to where it came from: an instance could not reach its own public port.
    # Written by hand: pyroute2 leaves the nested flag out, and the kernel then reads a state.
    body = _IFINFOMSG.pack(socket.AF_BRIDGE, 0, index, 0, 0)
    body += attribute(_IFLA_PROTINFO | _NLA_F_NESTED, attribute(_IFLA_BRPORT_MODE, b"\1"))
    return Request(RTM_SETLINK, 0, body, "set hairpin mode", link)


def _inside(interface: Inside, index: int) -> list[Request]:
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    name = interface.name
    requests = [
        _address(index, name, interface.address, interface.prefix),
        Request(RTM_SETLINK, 0, _ifinfmsg(index=index, flags=_IFF_UP), "set link up", name),
    ]
    if interface.rate_mbit:
        requests.append(_tbf(name, index, interface.rate_mbit))
    if interface.gateway:
        message = rtmsg()
        message["family"] = socket.AF_INET
        message["table"] = _RT_TABLE_MAIN
        message["proto"] = _RTPROT_STATIC
        message["type"] = _RTN_UNICAST
        message["attrs"] = [
            ("RTA_GATEWAY", interface.gateway),
            ("RTA_OIF", index),
            ("RTA_PRIORITY", interface.metric),
        ]
        flags = NLM_F_CREATE | NLM_F_EXCL
        what = f"add default route by {interface.gateway}"
        requests.append(Request(RTM_NEWROUTE, flags, _encode(message), what, name))
    return requests


def _tbf(link: str, index: int, rate_mbit: int) -> Request:
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


def _refuse_advertisements(name: str) -> None:
    # The node routes no IPv6; an advertisement on the bridge can only come from a sibling.
    try:
        sysctl.write(f"ipv6/conf/{name}/accept_ra", "0")
    except FileNotFoundError:
        pass  # a kernel without IPv6
