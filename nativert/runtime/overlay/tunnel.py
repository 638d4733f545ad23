"""The overlay of one node in the kernel: a VXLAN link, routes to other nodes' pools, a table.

Routed, not bridged: frames of instances stay on their node's bridge, and each node is the gateway
to its own. So nothing is flooded and no host learns the MAC of an instance; one that has moved is
one route more. What is here follows from the plan alone, whichever process looks.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from nativert.errors import Code, NativertError
from nativert.isolation.network import routes, sysctl, vxlan
from nativert.isolation.network.links import Links
from nativert.isolation.network.messages import Link
from nativert.isolation.network.routes import Route
from nativert.isolation.network.vxlan import Neighbour, Tunnel
from nativert.runtime.overlay import guard, plan
from nativert.runtime.overlay.plan import Plan
from nativert.runtime.protocols import InterfaceRequest

TUNNEL_PREFIX: Final = "nrx-"
_ETHERNET_MTU: Final = 1500
_HOST_PREFIX: Final = 32


def mac_of(tag: str) -> str:
    """Return the MAC of a node's end of the tunnels, by its tag."""
    return f"02:6e:78:{tag[0:2]}:{tag[2:4]}:{tag[4:6]}"


class Overlay:
    """Beside a node's bridge; may be used from any thread and beside other processes."""

    def __init__(self, tag: str, bridge: str, subnet: str, state_dir: Path, links: Links) -> None:
        self.link = f"{TUNNEL_PREFIX}{tag}"
        self._mac = mac_of(tag)
        self._table = f"nativert_{tag}_vx"
        self._bridge = bridge
        self._subnet = IPv4Network(subnet)
        self._gateway = str(self._subnet.network_address + 1)
        self._path = plan.path_below(state_dir)
        self._links = links
        self._netlink = vxlan.open_netlink()
        # What this process has last brought into the kernel.
        self._done: Plan | None = None

    def close(self) -> None:
        """Release the socket; safe twice."""
        self._netlink.close()

    # -- what is planned ---------------------------------------------------------------

    def plan(self) -> Plan | None:
        """Return what the node's agent has planned, None where the node is in no overlay."""
        return plan.read(self._path)

    def keep(self, planned: Plan) -> None:
        """Go by *planned* from now on; `ensure` carries it out."""
        plan.write(self._path, planned)

    def forget(self) -> None:
        """Be in no overlay any more; safe twice."""
        self._path.unlink(missing_ok=True)
        self.destroy()

    def reaches(self, address: str) -> bool:
        """Tell whether an address is of the pool of a node that is joined with this one."""
        planned = self.plan()
        if planned is None:
            return False
        wanted = IPv4Address(address)
        return any(
            wanted in pool and pool[1] < wanted < pool[-1]
            for pool in (IPv4Network(peer.subnet) for peer in planned.peers)
        )

    def prefix(self, request: InterfaceRequest) -> int:
        """Return the prefix length that an interface gets: its own where the node is alone.

        In an overlay nobody has neighbours, which could move: all go by the node. On a virtual
        network of fog05, which is in none, everybody has.
        """
        if request.network:
            return request.prefix
        joined = IPv4Address(request.address) not in self._subnet or self.plan() is not None
        return _HOST_PREFIX if joined else request.prefix

    # -- what is in the kernel ---------------------------------------------------------

    def present(self) -> bool:
        """Return whether the link is there."""
        link = self._links.find(self.link)
        return link is not None and link.kind == "vxlan"

    def ensure(self) -> list[str]:
        """Have in the kernel what is planned, all or nothing; return what was put back, in words.

        OSError, or NativertError if the link's name belongs to another kind of link.
        """
        planned = self.plan()
        if planned is None:
            return []
        mended: list[str] = []
        with ExitStack() as undo:
            link = self._found(planned, mended)
            if link is None:
                undo.callback(self.destroy)
                link = self._make(planned)
            elif not link.up:
                self._links.bring_up(self.link, link.alias)
                mended.append(f"tunnel {self.link} was down")
            ends = [
                Neighbour(address=peer.gateway, mac=peer.mac, remote=peer.address)
                for peer in planned.peers
            ]
            # Each time: a link that was down has lost them, and nobody tells.
            vxlan.set_neighbours(self._netlink, self.link, link.index, ends)
            mended += self._route(planned, link.index)
            here = plan.foreign(planned, self._subnet)
            rules = guard.render(
                self._table, self._bridge, self.link, str(self._subnet), planned, here
            )
            if problem := guard.ensure(self._table, rules):
                mended.append(f"packet filter of {self.link}: {problem}")
            undo.pop_all()
        new, self._done = planned != self._done, planned
        return [] if new else mended

    def _found(self, planned: Plan, mended: list[str]) -> Link | None:
        link = self._links.find(self.link)
        if link is None:
            mended.append(f"tunnel {self.link} was removed")
            return None
        if link.kind != "vxlan":
            raise NativertError(
                f"cannot use {self.link}: it is a {link.kind or 'device'}, not a vxlan",
                code=Code.NETWORK,
            )
        if link.alias != self._alias(planned):
            # What it was made with cannot be changed, or was not all made.
            self._links.delete(link.index, self.link)
            mended.append(f"tunnel {self.link} was of another configuration")
            return None
        return link

    @staticmethod
    def _alias(planned: Plan) -> str:
        return f"nativert vni {planned.vni} port {planned.port} local {planned.address}"

    def _make(self, planned: Plan) -> Link:
        tunnel = Tunnel(
            vni=planned.vni,
            local=planned.address,
            port=planned.port,
            mac=self._mac,
            mtu=self._mtu(planned.address),
        )
        try:
            vxlan.add(self._netlink, self.link, tunnel)
        except FileExistsError:
            # Of another process of this node it may be, or another link's with the same VNI.
            if not self.present():
                raise NativertError(
                    f"cannot make {self.link}: another link of this host has VNI {planned.vni}"
                    f" on UDP port {planned.port}",
                    code=Code.NETWORK,
                    hint="set overlay.vni on all nodes; see ip -d link show type vxlan",
                ) from None
        except OSError as e:
            if e.errno != errno.EOPNOTSUPP:
                raise
            raise NativertError(
                f"cannot make {self.link}: this kernel has no vxlan",
                code=Code.NETWORK,
                hint="modprobe vxlan, or use a kernel that is built with CONFIG_VXLAN",
            ) from e
        # Who was configured before the node was joined takes its pool for one Ethernet, and asks
        # by ARP for what has moved away: the node answers for it.
        sysctl.ensure(f"ipv4/conf/{self._bridge}/proxy_arp", "1")
        sysctl.disable_ipv6(self.link)
        self._links.bring_up(self.link, self._alias(planned))
        link = self._links.find(self.link)
        if link is None:
            raise OSError(errno.ENODEV, "the tunnel was removed meanwhile", self.link)
        return link

    def _mtu(self, address: str) -> int:
        index = vxlan.index_with(self._netlink, address)
        name = None if index is None else self._links.name_of(index)
        link = None if name is None else self._links.find(name)
        whole = _ETHERNET_MTU if link is None else min(link.mtu, 65535)
        return whole - vxlan.OVERHEAD_BYTES

    def _route(self, planned: Plan, tunnel: int) -> list[str]:
        bridge = self._links.index_of(self._bridge)
        if bridge is None:
            return []  # `prepare` makes it, and comes here again.
        wanted = {
            Route(network, tunnel if gateway else bridge, gateway)
            for network, gateway in plan.destinations(planned, self._subnet).items()
        }
        present = {one for one in routes.kept(self._netlink) if one.link in (tunnel, bridge)}
        missing = wanted - present
        routes.replace(self._netlink, missing, source=self._gateway)
        replaced = {one.destination for one in missing}
        stale = {one for one in present - wanted if one.destination not in replaced}
        routes.delete(self._netlink, stale)
        return [f"route to {one.destination} was missing" for one in sorted(missing, key=str)]

    def destroy(self) -> None:
        """Remove link, routes and table; what is planned stays. Safe twice."""
        self._done = None
        link = self._links.find(self.link)
        if link is not None and link.kind == "vxlan":
            # And with it the routes to other nodes.
            self._links.delete(link.index, self.link)
        guard.remove(self._table)
        bridge = self._links.index_of(self._bridge)
        if bridge is not None:
            sysctl.ensure(f"ipv4/conf/{self._bridge}/proxy_arp", "0")
            here = {one for one in routes.kept(self._netlink) if one.link == bridge}
            routes.delete(self._netlink, here)
