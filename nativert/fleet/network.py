"""The wires of a fleet: a namespace for each node, and one for the bridge that joins them.

Nothing of it but the names of the namespaces is in the host's own: no link that a firewall of the
host filters, and no address that its users reach.
"""

from __future__ import annotations

import os
from typing import Final

from nativert.fleet.plan import SUBNET, Plan
from nativert.isolation.network import named
from nativert.isolation.network.links import Links
from nativert.isolation.network.messages import Inside
from nativert.isolation.network.netns import inside

_UPLINK: Final = "fleet0"


def make(plan: Plan) -> None:
    """Make all of it; what an OSError leaves behind, `remove` removes."""
    for name in (plan.hub, *(node.netns for node in plan.nodes)):
        named.create(name)
    hub = named.open_named(plan.hub)
    try:
        inside(hub, lambda: _join(plan))
    finally:
        os.close(hub)


def _join(plan: Plan) -> None:
    links = Links()
    try:
        links.add_bridge(plan.bridge, _mac(plan.tag, 0))
        master = links.index_of(plan.bridge)
        assert master is not None  # It has just been made.
        for number, node in enumerate(plan.nodes, 1):
            netns = named.open_named(node.netns)
            try:
                mac = _mac(plan.tag, number)
                links.add_veth(node.link, master=master, netns=netns, name=_UPLINK, mac=mac)
                uplink = Inside(name=_UPLINK, address=node.address, prefix=SUBNET.prefixlen)
                links.configure(netns, [uplink])
                inside(netns, _loopback_up)
            finally:
                os.close(netns)
    finally:
        links.close()


def _loopback_up() -> None:
    links = Links()
    try:
        links.bring_up("lo", "")
    finally:
        links.close()


def _mac(tag: str, number: int) -> str:
    return f"02:66:{number:02x}:{tag[0:2]}:{tag[2:4]}:{tag[4:6]}"


def remove(plan: Plan) -> None:
    """Remove all that is there of it; the kernel takes the links with their namespaces."""
    for name in named.names(f"{plan.bridge}-"):
        named.unpin(name)
