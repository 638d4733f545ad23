"""The agent's functions that plugins ask for, of a node without any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nativert.errors import Code, NativertError
from nativert.plugin import interfaces, keys
from nativert.plugin.connector import Connector
from nativert.plugin.string_api import Call, Reply, methods, serve
from nativert.runtime.named_networks import uplink
from nativert.runtime.node import Node

FUNCTIONS: Final = (
    "get_fdu_info",
    "get_node_fdu_info",
    "get_image_info",
    "get_network_info",
    "get_port_info",
    "get_node_mgmt_address",
)
# fog05's codes for what the agent cannot find.
_NOT_FOUND: Final = {"get_network_info": 22, "get_port_info": 33}


class AgentApi:
    """What `FUNCTIONS` names, from the connector's records and the node."""

    def __init__(self, connector: Connector, node: Node, node_id: str) -> None:
        self._connector = connector
        self._node = node
        self._node_id = node_id

    @property
    def call(self) -> Call:
        """The functions, called by name."""
        served = serve(methods(self, FUNCTIONS))

        def call(name: str, parameters: Mapping[str, str]) -> Reply:
            reply = served(name, parameters)
            if "error" in reply and name in _NOT_FOUND:
                return {**reply, "error": _NOT_FOUND[name]}
            return reply

        return call

    def get_fdu_info(self, fdu_uuid: str) -> Any:
        """Return a descriptor of the catalog."""
        return self._find(keys.descriptor(fdu_uuid), f"FDU {fdu_uuid}")

    def get_node_fdu_info(self, fdu_uuid: str, instance_uuid: str, node_uuid: str) -> Any:
        """Return an instance's record."""
        if node_uuid == self._node_id:
            record = self._node.inspect(instance_uuid)
            if record["fdu_id"] == fdu_uuid:
                return {name: value for name, value in record.items() if name != "native"}
        raise NativertError(
            f"instance {instance_uuid} of FDU {fdu_uuid} is not on node {node_uuid}",
            code=Code.NOT_FOUND,
        )

    def get_image_info(self, image_uuid: str) -> Any:
        """Return an image."""
        return self._find(f"/agfos/0/tenants/0/image/{image_uuid}/info", f"image {image_uuid}")

    def get_network_info(self, uuid: str) -> Any:
        """Return a network."""
        return self._find(f"/agfos/0/tenants/0/networks/{uuid}/info", f"network {uuid}")

    def get_port_info(self, cp_uuid: str) -> Any:
        """Return a connection point."""
        path = f"/agfos/0/tenants/0/networks/ports/{cp_uuid}/info"
        return self._find(path, f"connection point {cp_uuid}")

    def get_node_mgmt_address(self, node_uuid: str) -> dict[str, str]:
        """Return the addresses of the link by which the node reaches others."""
        if node_uuid != self._node_id:
            raise NativertError(f"{node_uuid}: no such node", code=Code.NOT_FOUND)
        return interfaces.configuration(uplink())

    def _find(self, path: str, what: str) -> Any:
        for sample in self._connector.get(path):
            if sample.value is not None:
                return msgspec.json.decode(sample.value)
        raise NativertError(f"{what}: not known here", code=Code.NOT_FOUND)
