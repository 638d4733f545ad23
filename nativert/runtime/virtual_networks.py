"""Virtual networks of fog05, as far as instances are on them.

What a network is stands in the catalog that all nodes have; on a node it is a bridge, made when
the first interface needs it. Who is on it has an address of its subnet and reaches the others of
this node that are on it: there is no router, no DHCP and no way to other nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network
from itertools import combinations
from typing import Any, Final

import msgspec

from nativert.errors import Code, NativertError, StepError
from nativert.fdu.descriptor import Descriptor
from nativert.fdu.quantity import show
from nativert.runtime.context import Context, descriptor_of
from nativert.runtime.observe import Observed
from nativert.runtime.protocols import VirtualBridges, WithVirtualNetworks
from nativert.runtime.release import attached
from nativert.store import boot

CATALOG: Final = "/agfos/0/tenants/0/networks/{uuid}/info"
# fog05 knows them; a bridge on one node cannot be any of it.
_REFUSED: Final = ("overlay", "vni", "mcast_addr", "vlan_id", "face")
# Network, the first host (a gateway's, which is not given out), one to give out, broadcast.
_LONGEST_PREFIX: Final = 30


class VirtualNetwork(msgspec.Struct, frozen=True):
    """What a descriptor of the catalog comes to here."""

    uuid: str
    name: str
    subnet: IPv4Network


def decode(uuid: str, value: Mapping[str, Any]) -> VirtualNetwork:
    """Return the network of a descriptor; NativertError NETWORK for one that cannot be here."""
    what = f"network {uuid}"
    for key in _REFUSED:
        if value.get(key):
            raise _refusal(f"{what}: {key}: a virtual network is on one node, without a tunnel")
    if (kind := str(value.get("net_type") or "ELAN")) != "ELAN":
        raise _refusal(f"{what}: net_type is {show(kind)}: expected ELAN")
    configuration = value.get("ip_configuration")
    given = configuration.get("subnet") if isinstance(configuration, dict) else None
    if not given:
        raise _refusal(
            f"{what}: has no ip_configuration.subnet, and an application cannot give itself an"
            " address"
        )
    try:
        subnet = IPv4Network(str(given), strict=False)
    except ValueError:
        expected = "an IPv4 network such as 192.168.7.0/24"
        raise _refusal(f"{what}: subnet is {show(str(given))}: expected {expected}") from None
    if subnet.prefixlen > _LONGEST_PREFIX:
        raise _refusal(f"{what}: subnet {subnet} has no address to give out")
    return VirtualNetwork(uuid, str(value.get("name") or uuid), subnet)


def find(context: Context, uuid: str) -> VirtualNetwork:
    """Return a network of the catalog; NativertError NETWORK."""
    entry = context.store.entry(CATALOG.format(uuid=uuid))
    if entry is None or entry.value is None:
        raise NativertError(
            f"network {uuid} is not in the catalog",
            code=Code.NETWORK,
            hint="add it by a client of fog05: network.add_network",
        )
    return decode(uuid, msgspec.json.decode(entry.value))


def subnets(context: Context, descriptor: Descriptor) -> dict[str, IPv4Network]:
    """Return the subnet of each interface that is on a virtual network; NativertError NETWORK."""
    networks = {uuid: find(context, uuid) for uuid in descriptor.networks.values()}
    own = VirtualNetwork("", "the node's own", context.identity.subnet)
    for one, other in combinations((own, *networks.values()), 2):
        if one.subnet.overlaps(other.subnet):
            raise _refusal(
                f"network {other.name}: its subnet {other.subnet} is in the way of {one.subnet},"
                f" of network {one.name}"
            )
    return {name: networks[uuid].subnet for name, uuid in descriptor.networks.items()}


def bridges(context: Context) -> VirtualBridges:
    """Return what makes networks on this node; NativertError NETWORK where a plugin cannot."""
    network = context.network
    if not isinstance(network, WithVirtualNetworks):
        raise _refusal("the network plugin of this node has no virtual networks")
    return network.virtual


def connect(context: Context, seen: Observed, point: str, network: str) -> Observed:
    """Put what is at a connection point on its *network* again, or take it off with "".

    *point* is the id in the descriptor; the caller holds the instance's lock.
    """
    row, facts = seen.row, seen.facts
    descriptor = descriptor_of(row.descriptor, row.name)
    names = {each.name for each in descriptor.interfaces if each.cp_id == point}
    links = [] if facts is None else [each for each in attached(facts) if each.name in names]
    if facts is None or not links:
        raise NativertError(
            f"{row.name}: nothing is at connection point {point}: it is not configured, or no"
            " interface names it",
            code=Code.PORT_TAKEN,
        )
    own = links[0].network
    if not own:
        raise _refusal(f"{row.name}: connection point {point} is on the node's own network")
    if network and network != own:
        raise _refusal(
            f"{row.name}: connection point {point} is of network {own}: its address is of that"
            " subnet; define the FDU anew with another vld_ref"
        )
    there = bridges(context)
    try:
        for each in links:
            if network:
                there.connect(each)
            else:
                there.disconnect(each)
    except OSError as e:
        raise StepError(row.name, "network", e, code=Code.NETWORK) from e
    changed = {each.name for each in links}
    facts = msgspec.structs.replace(
        facts,
        links=tuple(
            msgspec.structs.replace(link, connected=bool(network)) if link.name in changed else link
            for link in facts.links
        ),
    )
    boot.write_facts(context.paths, row.uuid, facts)
    return msgspec.structs.replace(seen, facts=facts)


def _refusal(text: str) -> NativertError:
    return NativertError(text, code=Code.NETWORK)
