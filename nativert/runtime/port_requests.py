"""Ports as descriptors ask for them, as the packet filter has them."""

from __future__ import annotations

import ipaddress

from nativert.errors import Code, NativertError
from nativert.isolation.network.nftables import PROTOCOLS, Published
from nativert.runtime.protocols import PortRequest


def where(port: Published) -> str:
    """Return how a port of the host is told."""
    return f"{port.host_ip}:{port.host_port}" if port.host_ip else str(port.host_port)


def port_of(address: str, request: PortRequest) -> Published:
    """Return what leads to the address; NativertError NETWORK for what cannot be published."""
    host_ip = request.host_ip or None
    if host_ip is not None:
        try:
            parsed = ipaddress.IPv4Address(host_ip)
        except ValueError:
            raise NativertError(
                f"cannot publish on {host_ip}: only on an IPv4 address", code=Code.NETWORK
            ) from None
        host_ip = None if parsed.is_unspecified else str(parsed)
    if request.protocol not in PROTOCOLS:
        raise NativertError(
            f"cannot publish {request.protocol} port {request.host_port}: only tcp and udp",
            code=Code.NETWORK,
        )
    return Published(host_ip, request.protocol, request.host_port, address, request.instance_port)
