"""The bridge, veth pairs, addresses, routes and shaping of one node, by rtnetlink(7)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nativert.isolation.network import sysctl
from nativert.isolation.network.messages import (
    IFF_UP,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_GETSTATS,
    RTM_NEWLINK,
    RTM_SETLINK,
    Inside,
    Link,
    address_request,
    bridges_request,
    decode_link,
    hairpin,
    ifinfomsg,
    inside_requests,
    ports_request,
    tbf,
)
from nativert.isolation.network.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Netlink,
    Request,
)
from nativert.isolation.network.netns import inside

_IFLA_STATS_FILTER_LINK_64: Final = 1
_IF_STATS_MSG: Final = struct.Struct("=BBHII")
# rtnl_link_stats64: rx_packets tx_packets rx_bytes tx_bytes rx_errors tx_errors rx_dropped
# tx_dropped; more follows. Before it: if_stats_msg and one attribute's header.
_STATS64: Final = struct.Struct("=8Q")
_STATS64_OFFSET: Final = _IF_STATS_MSG.size + 4


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
        message = ifinfomsg(
            flags=IFF_UP,
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
        message = ifinfomsg(
            flags=IFF_UP,
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
            self._netlink.transact([hairpin(link, index)])
        except OSError:
            self.delete(index, link)
            raise
        return index

    def add_address(self, link: str, address: str, prefix: int) -> None:
        """Give a link an IPv4 address; one that it has already is no error."""
        request = address_request(self._netlink.index_of(link), link, address, prefix)
        try:
            self._netlink.transact([request])
        except FileExistsError:
            pass

    def bring_up(self, link: str, alias: str) -> None:
        """Set a link up and label it."""
        message = ifinfomsg(
            index=self._netlink.index_of(link), flags=IFF_UP, attrs=[("IFLA_IFALIAS", alias)]
        )
        self._netlink.transact([Request(RTM_SETLINK, 0, message, "set link up", link)])

    def configure(self, netns: int, interfaces: Sequence[Inside]) -> None:
        """Address interfaces inside a namespace, set them up and route by them."""

        def body() -> None:
            with Netlink(NETLINK_ROUTE) as netlink:
                requests: list[Request] = []
                for interface in interfaces:
                    # The peer's index asked for at creation is ignored by the kernel.
                    requests += inside_requests(interface, netlink.index_of(interface.name))
                    _refuse_ipv6(interface.name)
                netlink.transact(requests)

        inside(netns, body)

    def shape(self, link: str, index: int, rate_mbit: int) -> None:
        """Limit what leaves by a link; ENOENT if the kernel has no tbf. See tc-tbf(8)."""
        self._netlink.transact([tbf(link, index, rate_mbit)])

    def cut(self, links: Sequence[tuple[int, str]], group: int) -> None:
        """Take links (index, name) down and off their bridge, into a group to delete at once."""
        for index, name in links:
            message = ifinfomsg(
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
        message = ifinfomsg(index=index)
        try:
            self._netlink.transact([Request(RTM_DELLINK, 0, message, "delete link", name)])
        except OSError as e:
            if e.errno != errno.ENODEV:
                raise

    def find(self, name: str) -> Link | None:
        """Return the link of a name, or None."""
        try:
            index = self._netlink.index_of(name)
            request = Request(RTM_GETLINK, 0, ifinfomsg(index=index), "get link", name)
            return decode_link(self._netlink.transact([request])[0][0])
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
        return [decode_link(body) for body in self._netlink.transact([bridges_request()])[0]]

    def members(self, master: int) -> set[str]:
        """Return the names of the links that are ports of a bridge."""
        answers = self._netlink.transact([ports_request(master)])[0]
        return {decode_link(body).name for body in answers}

    def enslave(self, index: int, name: str, master: int) -> None:
        """Make a link a port of a bridge, up and hairpinned."""
        message = ifinfomsg(index=index, flags=IFF_UP, attrs=[("IFLA_MASTER", master)])
        self._netlink.transact([Request(RTM_SETLINK, 0, message, "enslave link", name)])
        self._netlink.transact([hairpin(name, index)])

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
    message = ifinfomsg(attrs=[("IFLA_GROUP", group)])
    try:
        netlink.transact([Request(RTM_DELLINK, 0, message, "delete group", str(group))])
    except OSError as e:
        if e.errno != errno.ENODEV:
            raise


def _refuse_ipv6(name: str) -> None:
    # The node routes no IPv6: an advertisement can only come from a sibling, and to siblings
    # anybody may write from any IPv6 address (IPV6_FREEBIND needs no right, IP_FREEBIND does
    # not let an IPv4 one out).
    try:
        sysctl.write(f"ipv6/conf/{name}/accept_ra", "0")
        sysctl.write(f"ipv6/conf/{name}/disable_ipv6", "1")
    except FileNotFoundError:
        pass  # a kernel without IPv6
