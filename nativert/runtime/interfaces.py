"""What the interfaces of an instance are asked for with."""

from __future__ import annotations

from nativert.fdu.descriptor import Descriptor
from nativert.runtime.context import Context
from nativert.runtime.protocols import InterfaceRequest
from nativert.store.durable import Row


def interface_requests(
    context: Context, row: Row, descriptor: Descriptor
) -> list[InterfaceRequest]:
    """Return what an instance's interfaces are asked for with."""
    wanted = {interface.name: interface for interface in descriptor.interfaces}
    return [
        InterfaceRequest(
            name=given.name,
            link=context.link_name(given.link),
            address=given.address,
            prefix=context.identity.subnet.prefixlen,
            gateway=context.identity.gateway,
            mac=wanted[given.name].mac_address or None,
            bandwidth_mbit=wanted[given.name].virtual_interface.bandwidth,
        )
        for given in row.interfaces
    ]
