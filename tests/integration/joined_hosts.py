"""Several hosts of one Ethernet, in namespaces of their own, each with a node's network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from network_hosts import ip, new_netns

from nativert.isolation.network import sysctl
from nativert.isolation.network.netns import inside
from nativert.runtime.network import BridgeNetwork
from nativert.runtime.overlay.plan import Peer, Plan
from nativert.runtime.overlay.tunnel import mac_of
from nativert.runtime.protocols import Attached, InterfaceRequest
from nativert.store.boot import boot_id

T = TypeVar("T")


class Joined:
    """One host; `subnet` is its node's pool, `uplink` the address at which others reach it."""

    def __init__(self, number: int, state: Path, hub: int) -> None:
        self.tag = f"a1b2c{number}"
        self.uplink = f"198.51.100.{number}"
        self.subnet = f"10.7{number}.4.0/22"
        self.here: dict[str, int] = {}
        self.netns = new_netns()
        self._instances: list[int] = []
        ip("link", "set", "lo", "up", netns=self.netns)
        peer = ["peer", "name", f"port{number}", "netns", f"/proc/{os.getpid()}/fd/{hub}"]
        ip("link", "add", "up0", "type", "veth", *peer, netns=self.netns)
        ip("link", "set", f"port{number}", "master", "hub", "up", netns=hub)
        ip("addr", "add", f"{self.uplink}/24", "dev", "up0", netns=self.netns)
        ip("link", "set", "up0", "up", netns=self.netns)
        self.network = self.do(lambda: BridgeNetwork(self.tag, self.subnet, state / self.tag))
        self.do(lambda: sysctl.write("ipv4/ip_forward", "0"))

    def do(self, body: Callable[[], T]) -> T:
        return inside(self.netns, body)

    def peer(self) -> Peer:
        return Peer(
            node=self.tag,
            mac=mac_of(self.tag),
            subnet=self.subnet,
            address=self.uplink,
            here=dict(self.here),
        )

    def plan(self, others: list[Joined]) -> Plan:
        peers = tuple(each.peer() for each in others)
        return Plan(
            boot_id=boot_id(),
            vni=7447,
            port=4789,
            address=self.uplink,
            here=dict(self.here),
            peers=peers,
        )

    def instance(self, number: int, address: str = "") -> tuple[int, Attached]:
        """A namespace with an interface of this host's; the address is of its pool unless given."""
        netns = new_netns()
        self._instances.append(netns)
        base = self.network.gateway.rsplit(".", 1)[0]
        request = InterfaceRequest(
            name="eth0",
            link=f"nv{self.tag}{number}",
            address=address or f"{base}.{number + 2}",
            prefix=22,
            gateway=self.network.gateway,
        )
        [attached] = self.do(lambda: self.network.attach(netns, [request]))
        return netns, attached

    def close(self) -> None:
        self.network.close()
        for netns in (*self._instances, self.netns):
            os.close(netns)


def tell_each_other(hosts: list[Joined]) -> None:
    for host in hosts:
        others = [each for each in hosts if each is not host]
        host.network.overlay.keep(host.plan(others))
        host.do(host.network.prepare)


@contextmanager
def joined(state: Path, count: int) -> Iterator[list[Joined]]:
    """Make hosts that are joined by an overlay."""
    hub = new_netns()
    hosts: list[Joined] = []
    try:
        ip("link", "add", "hub", "type", "bridge", netns=hub)
        ip("link", "set", "hub", "up", netns=hub)
        for number in range(1, count + 1):
            hosts.append(Joined(number, state, hub))
        tell_each_other(hosts)
        yield hosts
    finally:
        for host in hosts:
            host.close()
        os.close(hub)
