"""The built-in network of a node: one bridge, a veth per interface, one packet filter table.

IPv4 only: inside an instance the loopback alone has IPv6, and the host has none on the bridge.
"""

from __future__ import annotations

import errno
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from nativert.errors import Code, NativertError
from nativert.isolation.network import conntrack, forward, ports, resolver, sysctl
from nativert.isolation.network.deleter import GroupDeleter
from nativert.isolation.network.forwarding import Forwarding
from nativert.isolation.network.links import Links
from nativert.isolation.network.messages import Inside, Link
from nativert.isolation.network.nftables import Published, Table
from nativert.runtime.overlay.tunnel import Overlay
from nativert.runtime.port_requests import port_of, where
from nativert.runtime.protocols import Attached, Counters, InterfaceRequest, PortRequest
from nativert.runtime.virtual_bridges import NodeBridges

BRIDGE_PREFIX: Final = "nrt-"
_TAG: Final = re.compile(r"[0-9a-f]{6}")
# Others number their groups from 0; these are told apart by the tag.
_GROUP_BASE: Final = 0x4E00_0000
# A second interface's default route, so that both can exist; the first's wins.
_SECOND_METRIC: Final = 1024
_WITHDRAW_ATTEMPTS: Final = 5


class BridgeNetwork:
    """Satisfies `NetworkManager`; may be used from any thread and beside other processes.

    `subnet` is the node's pool, whose first address is the bridge's; `state_dir` holds what
    must be undone and belongs to this boot. Kernel refusals are OSError.
    """

    def __init__(self, tag: str, subnet: str, state_dir: Path) -> None:
        if not _TAG.fullmatch(tag):
            raise ValueError(f"tag {tag!r}: not six lower-case hex digits")
        self.bridge = f"{BRIDGE_PREFIX}{tag}"
        self._link_prefix = f"nv{tag}"
        self._subnet = ipaddress.IPv4Network(subnet)
        self.gateway = str(self._subnet.network_address + 1)
        self._mac = f"02:6e:74:{tag[0:2]}:{tag[2:4]}:{tag[4:6]}"
        self._group = _GROUP_BASE | int(tag, 16)
        self._links = Links()
        self.virtual = NodeBridges(tag, self._links)
        self._deleter = GroupDeleter(self._group)
        self.overlay = Overlay(tag, self.bridge, str(self._subnet), state_dir, self._links)
        self._table = Table(f"nativert_{tag}", self.bridge, str(self._subnet), self.overlay.link)
        self._forwarding = Forwarding(state_dir / "ip_forward.json")

    def prepare(self) -> None:
        """Make the bridge, the table and the sysctls, or mend what is missing; all or none.

        Raises NativertError if the bridge's name belongs to another kind of link.
        """
        with ExitStack() as undo:
            # First, because it holds the rule that makes route_localnet safe.
            if self._table.ensure():
                undo.callback(self._table.delete)
            bridge = self._links.find(self.bridge)
            if bridge is None:
                bridge = self._make_bridge(undo)
            if bridge.kind != "bridge":
                raise NativertError(
                    f"cannot use {self.bridge}: it is a {bridge.kind or 'device'}, not a bridge",
                    code=Code.NETWORK,
                )
            self._links.add_address(self.bridge, self.gateway, self._subnet.prefixlen)
            known = self._forwarding.ours()
            alias = self._forwarding.claim(self._other_bridges(BRIDGE_PREFIX))
            if not known:
                undo.callback(lambda: self._forwarding.release(self._other_bridges()))
            # The alias before the switch: another node that sees it on must see by whom.
            if not bridge.up or bridge.alias != alias:
                self._links.bring_up(self.bridge, alias)
            self._set_sysctls()
            self._forwarding.turn_on()
            self.overlay.ensure()
            undo.pop_all()

    def _make_bridge(self, undo: ExitStack) -> Link:
        try:
            self._links.add_bridge(self.bridge, self._mac)
        except FileExistsError:
            pass  # another command of this node was quicker
        else:
            undo.callback(self._delete_bridge)
        bridge = self._links.find(self.bridge)
        if bridge is None:
            raise OSError(errno.ENODEV, "the bridge was removed meanwhile", self.bridge)
        return bridge

    def _set_sysctls(self) -> None:
        # An instance could else give the host an IPv6 address and a default route.
        sysctl.disable_ipv6(self.bridge)
        # Published ports answer on 127.0.0.1 too.
        sysctl.ensure(f"ipv4/conf/{self.bridge}/route_localnet", "1")

    def attach(self, netns: int, interfaces: Sequence[InterfaceRequest]) -> tuple[Attached, ...]:
        """Give the namespace every interface, or none; needs `prepare` before.

        Raises NativertError (unenforceable-limit) for a bandwidth without tbf in the kernel.
        """
        for request in interfaces:
            if not request.link.startswith(self._link_prefix) or len(request.link) > 15:
                raise ValueError(f"link {request.link!r}: not a name of {self._link_prefix}…")
        own = self._links.index_of(self.bridge)
        if own is None:
            raise OSError(errno.ENODEV, "no such bridge", self.bridge)
        attached: list[Attached] = []
        with ExitStack() as undo:
            for request in interfaces:
                master = self.virtual.make(request.network) if request.network else own
                # Made from the address: whoever has it next has the MAC that neighbours know.
                mac = (request.mac or _mac_of(request.address)).lower()
                index = self._links.add_veth(
                    request.link, master=master, netns=netns, name=request.name, mac=mac
                )
                undo.callback(self._links.delete, index, request.link)
                attached.append(
                    Attached(request.name, request.link, index, mac, request.address,
                             request.network)
                )  # fmt: skip
                if request.bandwidth_mbit:
                    self._shape(request, index)
            self._links.configure(
                netns,
                [
                    Inside(
                        name=request.name,
                        address=request.address,
                        prefix=self.overlay.prefix(request),
                        gateway=request.gateway,
                        metric=_SECOND_METRIC + position if position else 0,
                        rate_mbit=request.bandwidth_mbit,
                    )
                    for position, request in enumerate(interfaces)
                ],
            )
            undo.pop_all()
        return tuple(attached)

    def _shape(self, request: InterfaceRequest, index: int) -> None:
        # What the host sends is what the instance receives; the other way is limited inside.
        try:
            self._links.shape(request.link, index, request.bandwidth_mbit)
        except FileNotFoundError as e:
            raise NativertError(
                f"cannot limit {request.name} to {request.bandwidth_mbit} Mbit/s: "
                "this kernel has no tbf queueing discipline",
                code=Code.UNENFORCEABLE,
                hint="load the module sch_tbf, or leave the bandwidth out",
            ) from e

    def mend(
        self, attached: Sequence[Attached], ports: Mapping[str, Sequence[PortRequest]]
    ) -> list[str]:
        """Put back what was taken away; return what that was, in words."""
        mended: list[str] = []
        wanted = [port_of(address, each) for address in ports for each in ports[address]]
        if problem := self._table.problem(wanted):
            self._table.rebuild(wanted)
            mended.append(f"packet filter: {problem}")
        bridge = self._links.find(self.bridge)
        if bridge is None or not bridge.up:
            mended.append(f"bridge {self.bridge} was {'removed' if bridge is None else 'down'}")
            self.prepare()
        master = self._links.index_of(self.bridge)
        if master is None:
            raise OSError(errno.ENODEV, "no such bridge", self.bridge)
        on_bridge = self._links.members(master)
        for each in attached:
            if each.network or self._links.name_of(each.index) != each.link:
                continue
            if each.link not in on_bridge:
                self._links.enslave(each.index, each.link, master)
                mended.append(f"link {each.link} was taken off the bridge")
        mended += self.overlay.ensure()
        return mended + self.virtual.mend([each for each in attached if each.network])

    def detach(self, attached: Sequence[Attached]) -> None:
        """Cut the interfaces off now, delete them in the background; safe twice.

        An `index` of 0 finds the link by its name. Links of other owners are left alone.
        """
        present = [
            (index, interface.link)
            for interface in attached
            if interface.link.startswith(self._link_prefix)
            and (index := interface.index or self._links.index_of(interface.link))
            and self._links.name_of(index) == interface.link
        ]
        if present:
            self._links.cut(present, self._group)
            self._deleter.delete()

    def gone(self, attached: Sequence[Attached]) -> bool:
        """Return whether the kernel has none of the links any more."""
        return not any(
            self._links.name_of(interface.index) == interface.link
            if interface.index
            else self._links.index_of(interface.link)
            for interface in attached
        )

    def publish(self, address: str, requests: Sequence[PortRequest]) -> None:
        """Lead ports of the host to the address, all or none; what is so already stays.

        Raises NativertError (port-taken) naming who has one of them.
        """
        if not requests:
            return
        wanted = [port_of(address, request) for request in requests]
        present = self._table.ports()
        missing = [port for port in wanted if port not in present]
        for port in missing:
            self._refuse_taken(port, [*present, *(p for p in wanted if p is not port)])
        try:
            self._table.add(missing)
        except FileExistsError as e:
            raise NativertError(
                f"cannot publish ports of {address}: another command took one of them",
                code=Code.PORT_TAKEN,
            ) from e
        for port in missing:
            if port.protocol == "udp":
                conntrack.forget_untranslated_udp(port.host_port)

    def _refuse_taken(self, port: Published, others: Iterable[Published]) -> None:
        what = f"cannot publish {port.protocol} port {where(port)}"
        for other in others:
            if (
                other.protocol == port.protocol
                and other.host_port == port.host_port
                # A port on every address and the same port on one of them are in each other's way.
                and (None in (other.host_ip, port.host_ip) or other.host_ip == port.host_ip)
            ):
                raise NativertError(
                    f"{what}: it leads to {other.address} port {other.port} already",
                    code=Code.PORT_TAKEN,
                )
        try:
            free = ports.is_free(port.host_ip, port.host_port, port.protocol)
        except OSError as e:
            if e.errno != errno.EADDRNOTAVAIL:
                raise
            raise NativertError(
                f"{what}: the host has no address {port.host_ip}", code=Code.NETWORK
            ) from e
        if not free:
            raise NativertError(
                f"{what}: a process of the host listens on it",
                code=Code.PORT_TAKEN,
                hint=f"find it by: ss -lnp 'sport = :{port.host_port}'",
            )

    def published(self) -> tuple[Published, ...]:
        """Return every published port, as the kernel has them."""
        return tuple(self._table.ports())

    def published_addresses(self) -> set[str]:
        """Return the addresses that ports of the host lead to."""
        return {port.address for port in self._table.ports()}

    def withdraw(self, address: str) -> None:
        """Take back every port published to the address and end the flows; safe twice."""
        for attempt in range(_WITHDRAW_ATTEMPTS):
            found = [port for port in self._table.ports() if port.address == address]
            if not found:
                break
            try:
                self._table.remove(found)
            except FileNotFoundError:
                # Another command withdrew some of them between the listing and now.
                if attempt + 1 == _WITHDRAW_ATTEMPTS:
                    raise
                continue
            conntrack.forget_answered_by(address)
            break

    def counters(self, attached: Sequence[Attached]) -> Counters:
        """Return the interfaces' sums as the instance sees them; ENODEV if one is gone."""
        stats = self._links.stats([(interface.index, interface.link) for interface in attached])
        # What the host's side of a veth sends is what the instance's side receives.
        return Counters(
            rx_bytes=sum(s.tx_bytes for s in stats),
            rx_packets=sum(s.tx_packets for s in stats),
            rx_dropped=sum(s.tx_dropped for s in stats),
            tx_bytes=sum(s.rx_bytes for s in stats),
            tx_packets=sum(s.rx_packets for s in stats),
            tx_dropped=sum(s.rx_dropped for s in stats),
        )

    def resolver(self) -> str:
        """Return the text of an instance's resolv.conf(5), from the host's."""
        return resolver.resolver()

    def links(self) -> tuple[str, ...]:
        """Return the veths of this node on the host; the bridge is not among them."""
        return tuple(name for name in self._links.names() if name.startswith(self._link_prefix))

    def foreign_forward_drops(self) -> list[forward.Drop]:
        """Return what of other people's rules keeps the bridge's packets, and how to mend it."""
        return forward.foreign_drops(self.bridge)

    def present(self) -> bool:
        """Return whether the bridge is there, the overlay, or a virtual network."""
        bridge = self._links.index_of(self.bridge)
        return bridge is not None or self.overlay.present() or bool(self.virtual.present())

    def reaches(self, address: str) -> bool:
        """Return whether an instance may have an address of another node's pool here."""
        return self.overlay.reaches(address)

    def destroy(self) -> None:
        """Remove bridge, table and what was set; safe twice.

        Raises NativertError while instances are attached, having changed nothing.
        """
        self._deleter.flush()
        left = [link for name in self.links() if (link := self._links.find(name)) is not None]
        busy = [link.name for link in left if link.master]
        if busy:
            raise NativertError(
                f"cannot remove {self.bridge}: {len(busy)} interfaces are attached",
                code=Code.NETWORK,
                hint=f"among them {busy[0]}; clean their instances first",
            )
        own = self._links.find(self.bridge)
        failures: list[OSError] = []
        for link in left:
            try:
                self._links.delete(link.index, link.name)
            except OSError as e:
                failures.append(e)
        for step in (
            self.overlay.destroy,
            self._delete_bridge,
            self.virtual.destroy,
            self._table.delete,
            lambda: self._forwarding.release(self._other_bridges(), own),
        ):
            try:
                step()
            except OSError as e:
                failures.append(e)
        if failures:
            raise NativertError(
                "cannot remove all of the node's network: " + "; ".join(map(str, failures)),
                code=Code.NETWORK,
            ) from ExceptionGroup("network", failures)

    def _delete_bridge(self) -> None:
        index = self._links.index_of(self.bridge)
        if index is not None:
            self._links.delete(index, self.bridge)

    def _other_bridges(self, prefix: str = "") -> list[Link]:
        return [
            bridge
            for bridge in self._links.bridges()
            if bridge.name != self.bridge and bridge.name.startswith(prefix)
        ]

    def close(self) -> None:
        """Finish the background deletions and release the sockets; safe twice."""
        try:
            self._deleter.close()
        finally:
            self.overlay.close()
            self._links.close()


def _mac_of(address: str) -> str:
    # Locally administered, as docker does it.
    return "02:6e:" + ":".join(f"{octet:02x}" for octet in ipaddress.IPv4Address(address).packed)
