"""A node's virtual networks, and the connection points of its instances, as clients see them.

Networks and points of the system are in the catalog; here is what of them is on this node. A
point is there from CONFIGURE on, published where a client looks for it before it asks to connect.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import msgspec

from nativert.agent.fog05 import paths
from nativert.agent.logs import LOGGER
from nativert.errors import Code, NativertError
from nativert.fdu import syntax
from nativert.fdu.quantity import FieldError
from nativert.plugin import keys
from nativert.plugin.connector import Sample
from nativert.plugin.zenoh_connector import ZenohConnector
from nativert.runtime import virtual_networks
from nativert.runtime.context import Context
from nativert.runtime.node import Node

FUNCTIONS: Final = (
    "create_node_network",
    "remove_node_network",
    "add_port_to_network",
    "remove_port_from_network",
)
NO_ROUTERS: Final = "a node has no routers: its own network leads out, virtual networks do not"


class _Point(NamedTuple):
    """The instance that a connection point is of, and its id in the descriptor."""

    instance: str
    id: str


class Networks:
    """What `FUNCTIONS` names, and the records of it."""

    def __init__(
        self, connector: ZenohConnector, node_id: str, node: Node, context: Context
    ) -> None:
        self._connector = connector
        self._node_id = node_id
        self._node = node
        self._context = context
        self._mutex = threading.Lock()
        self._points: dict[str, _Point] = {}
        self._open = ExitStack()

    def start(self) -> None:
        """Publish the networks that are there from before, and refuse routers."""
        desired = paths.node(paths.DESIRED, self._node_id, "networks/routers/*/info")
        self._open.callback(self._connector.subscribe(desired, self._router, ordered=True).close)
        try:
            for uuid in virtual_networks.bridges(self._context).present():
                self._publish(uuid)
        except (NativertError, OSError) as e:
            LOGGER.warning("cannot tell the node's networks: %s", e)

    def close(self) -> None:
        """Hear no more."""
        self._open.close()

    def _router(self, sample: Sample) -> None:
        # The client asks for the record until there is one: it is the only answer that ends it.
        path = paths.ACTUAL + sample.path.removeprefix(paths.DESIRED)
        if sample.value is None:
            self._connector.delete(path)
            return
        refusal: dict[str, Any] = {"uuid": sample.path.split("/")[9], "status": "ERROR"}
        refusal |= {"error": Code.NETWORK.fog05, "error_msg": f"add_router: {NO_ROUTERS}"}
        self._connector.put(path, msgspec.json.encode(refusal))

    # -- functions -----------------------------------------------------------------------

    def create_node_network(self, net_id: str = "", descriptor: str = "") -> dict[str, Any]:
        """Make a network of the catalog on this node; the client names it, others describe it."""
        uuid = _uuid(net_id or _described(descriptor), "net_id")
        virtual_networks.find(self._context, uuid)
        virtual_networks.bridges(self._context).make(uuid)
        return self._publish(uuid)

    def remove_node_network(self, net_id: str) -> dict[str, Any]:
        """Remove a network from this node; nobody may be on it."""
        uuid = _uuid(net_id, "net_id")
        path = self._path(uuid)
        kept = self._connector.kept(path)
        virtual_networks.bridges(self._context).remove(uuid)
        self._connector.delete(path)
        removed: dict[str, Any] = (
            {"uuid": uuid} if kept is None else msgspec.json.decode(kept.value or b"{}")
        )
        return removed | {"status": "DESTROY"}

    def add_port_to_network(self, cp_uuid: str, network_uuid: str) -> str:
        """Put a connection point of an instance on its network again."""
        self._connect(cp_uuid, _uuid(network_uuid, "network_uuid"))
        return cp_uuid

    def remove_port_from_network(self, cp_uuid: str) -> str:
        """Take a connection point of an instance off its network."""
        self._connect(cp_uuid, "")
        return cp_uuid

    def _connect(self, cp_uuid: str, network: str) -> None:
        with self._mutex:
            point = self._points.get(cp_uuid)
        if point is None:
            raise NativertError(
                f"connection point {cp_uuid} is of no configured instance of this node",
                code=Code.PORT_TAKEN,
            )
        self._node.connect(point.instance, point.id, network)

    # -- records -------------------------------------------------------------------------

    def told(self, key: keys.InstanceKey, record: dict[str, Any] | None) -> None:
        """Publish an instance's connection points, as its record says; None where it is gone."""
        points = {} if record is None else _points(record)
        with self._mutex:
            gone = [
                uuid
                for uuid, point in self._points.items()
                if point.instance == key.instance and uuid not in points
            ]
            for uuid in gone:
                del self._points[uuid]
            for uuid, told in points.items():
                self._points[uuid] = _Point(key.instance, str(told.get("cp_id")))
        for uuid in gone:
            self._connector.delete(self._path(f"ports/{uuid}"))
        for uuid, told in points.items():
            self._put(f"ports/{uuid}", told)
            network = told.get("vld_ref")
            if network and self._connector.kept(self._path(network)) is None:
                self._publish(network)

    def _publish(self, uuid: str) -> dict[str, Any]:
        entry = self._context.store.entry(virtual_networks.CATALOG.format(uuid=uuid))
        told: dict[str, Any] = (
            {} if entry is None or entry.value is None else msgspec.json.decode(entry.value)
        )
        told |= {"uuid": uuid, "status": "CREATE"}
        self._put(uuid, told)
        return told

    def _put(self, what: str, value: dict[str, Any]) -> None:
        self._connector.put(self._path(what), msgspec.json.encode(value))

    def _path(self, what: str) -> str:
        return paths.node(paths.ACTUAL, self._node_id, f"networks/{what}/info")


def _points(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return those of a record's points that are there, by their UUIDs."""
    return {
        str(point.get("uuid")): point
        for point in record.get("connection_points") or ()
        if point.get("status") not in (None, "CREATE")
    }


def _described(descriptor: str) -> str:
    try:
        tree = msgspec.json.decode(descriptor or "{}")
    except msgspec.DecodeError:
        tree = {}
    return str(tree.get("uuid") or "") if isinstance(tree, dict) else ""


def _uuid(text: str, field: str) -> str:
    try:
        syntax.check(syntax.UUID_PATTERN, text, field, "the UUID of a network")
    except FieldError as e:
        raise NativertError(f"{e.field}: {e.reason}", code=Code.NETWORK) from None
    return text.lower()
