"""What the interfaces of an instance are asked for with."""

from __future__ import annotations

from ipaddress import IPv4Address

from nativert.errors import Code, NativertError
from nativert.fdu.descriptor import Descriptor
from nativert.fdu.descriptor import Interface as Wanted
from nativert.runtime.context import Context
from nativert.runtime.protocols import InterfaceRequest
from nativert.store.durable import Interface, Row


def interface_requests(
    context: Context, row: Row, descriptor: Descriptor
) -> list[InterfaceRequest]:
    """Return what an instance's interfaces are asked for with; NativertError NETWORK."""
    networks = descriptor.networks
    if networks:
        from nativert.runtime import virtual_networks

        virtual_networks.bridges(context)
    wanted = {interface.name: interface for interface in descriptor.interfaces}
    return [
        _request(context, row, given, wanted[given.name], networks.get(given.name, ""))
        for given in row.interfaces
    ]


def _request(
    context: Context, row: Row, given: Interface, wanted: Wanted, uuid: str
) -> InterfaceRequest:
    # Who is on a virtual network has no way out by it.
    subnet, gateway = context.identity.subnet, context.identity.gateway
    if uuid:
        from nativert.runtime import virtual_networks

        subnet, gateway = virtual_networks.find(context, uuid).subnet, ""
        if IPv4Address(given.address) not in subnet:
            raise NativertError(
                f"{row.name}: {given.address} of {given.name} is not of {subnet}, which network"
                f" {uuid} has now",
                code=Code.NETWORK,
                hint="undefine it and define it again",
            )
    return InterfaceRequest(
        name=given.name,
        link=context.link_name(given.link),
        address=given.address,
        prefix=subnet.prefixlen,
        gateway=gateway,
        mac=wanted.mac_address or None,
        bandwidth_mbit=wanted.virtual_interface.bandwidth,
        network=uuid,
    )


def published_address(row: Row, descriptor: Descriptor) -> str:
    """Return the address that published ports lead to: of the first on the node's network."""
    networks = descriptor.networks
    return next(each.address for each in row.interfaces if each.name not in networks)
