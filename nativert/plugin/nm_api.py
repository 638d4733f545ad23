"""The network plugin's functions of fog05, served by the node's own network.

Connection points are the descriptors' and are made with the instance, and a node has no routers,
floating addresses or DHCP: what asks for them is refused with fog05's code for it, whatever it is
asked with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nativert.errors import Code, NativertError
from nativert.plugin.string_api import Call, Reply, methods, serve
from nativert.runtime.named_networks import HOST, NamedNetworks, neighbour, uplink

FUNCTIONS: Final = (
    "create_network_namespace",
    "delete_network_namespace",
    "create_virtual_interface_in_namespace",
    "delete_virtual_interface_from_namespace",
    "rename_virtual_interface_in_namespace",
    "move_interface_in_namespace",
    "attach_interface_to_bridge",
    "detach_interface_from_bridge",
    "assign_address_to_interface_in_namespace",
    "assign_mac_address_to_interface_in_namespace",
    "get_address_of_interface_in_namespace",
    "remove_address_from_interface_in_namespace",
    "create_macvlan_interface",
    "delete_macvlan_interface",
    "create_virtual_bridge",
    "delete_virtual_bridge",
    "create_bridges_if_not_exist",
    "get_address",
    "get_overlay_face",
    "get_vlan_face",
)
# The SDK and the reference plugin disagree about these names: both are served.
ALIASES: Final = {
    "get_overlay_interface": "get_overlay_face",
    "get_vlan_interface": "get_vlan_face",
}
# fog05's codes for a network, and for a connection point or floating address, not found.
_NO_NETWORK: Final = 22
_NO_POINT: Final = 33
_NO_POINTS: Final = "this node has no points to make: they are made with their instances"
_NO_ROUTERS: Final = "this node has no routers"
_NO_FLOATING: Final = "this node has no floating addresses: publish ports of it"
REFUSED: Final = {
    "create_port_agent": _NO_POINTS,
    "destroy_port_agent": _NO_POINTS,
    "delete_port": _NO_POINTS,
    "connect_cp_to_vnetwork": _NO_POINTS,
    "disconnect_cp": _NO_POINTS,
    "connect_interface_to_connection_point": _NO_POINTS,
    "disconnect_interface": _NO_POINTS,
    "create_virtual_interface": _NO_POINTS,
    "delete_virtual_interface": _NO_POINTS,
    "create_floating_ip": _NO_FLOATING,
    "delete_floating_ip": _NO_FLOATING,
    "assign_floating_ip": _NO_FLOATING,
    "remove_floating_ip": _NO_FLOATING,
    "add_router_port": _NO_ROUTERS,
    "add_port_to_router": _NO_ROUTERS,
    "remove_router_port": _NO_ROUTERS,
    "remove_port_from_router": _NO_ROUTERS,
}


class NodeNetworkApi:
    """What `FUNCTIONS` names, on this node; refusals are OSError and NativertError."""

    def __init__(self, networks: NamedNetworks) -> None:
        self._networks = networks

    @property
    def call(self) -> Call:
        """The functions, called by name."""
        functions: dict[str, Callable[..., Any]] = methods(self, FUNCTIONS)
        functions |= {alias: functions[name] for alias, name in ALIASES.items()}
        served = serve(functions)

        def call(name: str, parameters: Any) -> Reply:
            if name in REFUSED:
                error = _NO_NETWORK if "router" in name else _NO_POINT
                return {"error": error, "error_msg": f"{name}: {REFUSED[name]}"}
            return served(name, parameters)

        return call

    # -- namespaces --------------------------------------------------------------------

    def create_network_namespace(self) -> str:
        """Make a network namespace; return its name under /run/netns."""
        return self._networks.create_namespace()

    def delete_network_namespace(self, nsname: str) -> str:
        """Take the name of a namespace away."""
        self._networks.delete_namespace(nsname)
        return nsname

    # -- links in namespaces -----------------------------------------------------------

    def create_virtual_interface_in_namespace(
        self, internal_name: str, nsname: str
    ) -> dict[str, Any]:
        """Make a veth with one end in the namespace."""
        pair = self._networks.create_veth(internal_name, nsname)
        return {
            "namespace": nsname,
            "internal": _face(pair.internal.name, pair.internal.ipv4, pair.internal.mac),
            "external": _face(pair.external.name, pair.external.ipv4, pair.external.mac),
        }

    def delete_virtual_interface_from_namespace(self, internal_name: str, nsname: str) -> str:
        """Delete a link, and with a veth its other end."""
        self._networks.delete_link(internal_name, nsname)
        return internal_name

    def rename_virtual_interface_in_namespace(
        self, name: str, newname: str, nsname: str = HOST
    ) -> str:
        """Rename a link."""
        self._networks.rename(name, newname, _namespace(nsname))
        return newname

    def move_interface_in_namespace(self, intf_name: str, nsname: str = HOST) -> str:
        """Move a link of the host into a namespace."""
        self._networks.move(intf_name, _namespace(nsname))
        return intf_name

    def assign_address_to_interface_in_namespace(
        self, intf_name: str, nsname: str, address: str = ""
    ) -> str:
        """Give a link ADDRESS/PREFIX."""
        if address in ("", "None"):
            raise NativertError(
                f"{intf_name}: cannot be given an address by DHCP",
                code=Code.NETWORK,
                hint="name one: address=10.0.0.2/24",
            )
        self._networks.set_address(intf_name, _namespace(nsname), address)
        return address

    def assign_mac_address_to_interface_in_namespace(
        self, intf_name: str, nsname: str, address: str
    ) -> str:
        """Give a link a MAC address."""
        self._networks.set_mac(intf_name, _namespace(nsname), address)
        return address

    def get_address_of_interface_in_namespace(self, intf_name: str, nsname: str) -> str:
        """Return a link's ADDRESS/PREFIX, "" where it has none."""
        return self._networks.face(intf_name, _namespace(nsname)).ipv4

    def remove_address_from_interface_in_namespace(self, intf_name: str, nsname: str) -> str:
        """Take a link's addresses away; return the one that it had."""
        before = self._networks.face(intf_name, _namespace(nsname)).ipv4
        self._networks.remove_address(intf_name, _namespace(nsname))
        return before

    # -- links of the host -------------------------------------------------------------

    def attach_interface_to_bridge(self, intf_name: str, br_name: str) -> str:
        """Make a link a port of a bridge."""
        self._networks.attach(intf_name, br_name)
        return intf_name

    def detach_interface_from_bridge(self, intf_name: str) -> str:
        """Take a link off its bridge."""
        self._networks.attach(intf_name, None)
        return intf_name

    def create_macvlan_interface(self, master_intf: str) -> str:
        """Make a macvlan over a link; return its name."""
        return self._networks.create_macvlan(master_intf)

    def delete_macvlan_interface(self, intf_name: str, netns: str = HOST) -> str:
        """Delete a macvlan."""
        self._networks.delete_link(intf_name, _namespace(netns))
        return intf_name

    def create_virtual_bridge(self, name: str, uuid: str) -> dict[str, str]:
        """Make a bridge that is found again by *uuid*."""
        self._networks.create_bridge(name, uuid)
        return {"name": name, "uuid": uuid}

    def delete_virtual_bridge(self, br_uuid: str) -> str:
        """Delete the bridge that was made with this UUID."""
        self._networks.delete_bridge(br_uuid)
        return br_uuid

    def create_bridges_if_not_exist(self, expected_bridges: list[str]) -> list[str]:
        """Make those of the bridges that are missing; return them."""
        missing = [name for name in expected_bridges if not self._networks.is_bridge(name)]
        for name in missing:
            self._networks.create_bridge(name, name)
        return missing

    def get_address(self, mac_address: str) -> str:
        """Return the IPv4 address that the host knows for a MAC."""
        return neighbour(mac_address)

    def get_overlay_face(self) -> str:
        """Return the link by which the node reaches others."""
        return uplink()

    def get_vlan_face(self) -> str:
        """Return the link by which the node reaches others."""
        return uplink()


def _namespace(name: str) -> str:
    # An argument that was left out travels as Python's None.
    return HOST if name in ("", "None") else name


def _face(name: str, ipv4: str, mac: str) -> dict[str, str]:
    return {"name": name, "ipv4": ipv4, "ipv6": "", "mac": mac}
