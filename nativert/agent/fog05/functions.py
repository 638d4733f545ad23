"""The functions of the fog05 agent that clients and other nodes call."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable
from typing import Any, Final

import msgspec

from nativert.agent.fog05 import paths
from nativert.agent.fog05.catalog import SharedCatalog
from nativert.agent.fog05.hypervisors import Hypervisors
from nativert.agent.fog05.networks import NO_ROUTERS
from nativert.agent.fog05.records import Records
from nativert.errors import Code, DescriptorError, NativertError
from nativert.fdu import descriptor as descriptors
from nativert.fdu import record as fdu_records
from nativert.fdu import syntax
from nativert.fdu.descriptor import ComputationRequirements
from nativert.plugin.string_api import arguments, result_of
from nativert.plugin.zenoh_connector import ZenohConnector

FUNCTIONS: Final = ("onboard_fdu", "define_fdu", "schedule", "check", "heartbeat")
_POINTS: Final = (
    "an FDU's connection points are in its descriptor, and are made and removed with the instance"
)
_FLOATING: Final = "a node has no floating addresses: publish ports (native.network.ports)"
# What no FDU uses: refused at once, whatever it is asked with.
WITHOUT: Final = {
    "create_cp": (Code.PORT_TAKEN, _POINTS),
    "remove_cp": (Code.PORT_TAKEN, _POINTS),
    "connect_cp_to_face": (Code.PORT_TAKEN, _POINTS),
    "disconnect_cp_from_face": (Code.PORT_TAKEN, _POINTS),
    "create_floating_ip": (Code.PORT_TAKEN, _FLOATING),
    "delete_floating_ip": (Code.PORT_TAKEN, _FLOATING),
    "assign_floating_ip": (Code.PORT_TAKEN, _FLOATING),
    "remove_floating_ip": (Code.PORT_TAKEN, _FLOATING),
    "add_router_port": (Code.NETWORK, NO_ROUTERS),
    "remove_router_port": (Code.NETWORK, NO_ROUTERS),
}
_DEFINE_S: Final = 30.0
_CHECK_S: Final = 3.0
_LISTS: Final = ("storage", "interfaces", "io_ports", "connection_points", "depends_on")


class Functions:
    """`fits` refuses requirements that this node cannot meet now: NativertError."""

    def __init__(
        self,
        connector: ZenohConnector,
        node_id: str,
        catalog: SharedCatalog,
        records: Records,
        hypervisors: Hypervisors,
        fits: Callable[[ComputationRequirements], None],
    ) -> None:
        self._connector = connector
        self._node_id = node_id
        self._catalog = catalog
        self._records = records
        self._hypervisors = hypervisors
        self._fits = fits

    def onboard_fdu(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        """Enter a descriptor into the catalog; it gets a UUID if it has none."""
        checked = _checked(descriptor)
        name = str(descriptor.get("id"))
        fdu = str(descriptor.get("uuid") or uuid.uuid5(uuid.NAMESPACE_OID, name))
        fdu = checked.fdu_uuid if checked else fdu
        entered = {n: v for n, v in descriptor.items() if v is not None}
        entered |= {"uuid": fdu, **{n: entered.get(n, []) for n in _LISTS}}
        self._catalog.put(paths.descriptor(fdu), msgspec.json.encode(entered))
        return entered

    def define_fdu(self, fdu_id: str) -> dict[str, Any]:
        """Make an instance on this node, and return its record when its plugin has it."""
        descriptor = self._catalog.descriptor(fdu_id)
        plugin = self._hypervisors.plugin(str(descriptor.get("hypervisor")))
        instance = str(uuid.uuid4())
        record = _record(descriptor, fdu_id, instance)
        self._records.ask_plugin(plugin, fdu_id, instance, msgspec.json.encode(record))
        defined = self._records.until(instance, _DEFINE_S)
        if defined.get("status") == "ERROR":
            number, text = defined.get("error_code"), str(defined.get("error_msg"))
            code = next((code for code in Code if code.fog05 == number), Code.FAILED)
            raise NativertError(text, code=code)
        return defined

    def schedule(self, fdu_id: str) -> dict[str, Any]:
        """Make an instance on some node that can have it."""
        descriptor = self._catalog.descriptor(fdu_id)
        nodes = [
            sample.path.split("/")[6]
            for sample in self._connector.get(paths.node(paths.ACTUAL, "*", "info"))
        ]
        fitting = self._fitting(nodes, descriptor)
        if not fitting:
            raise NativertError(
                f"FDU {fdu_id}: none of {len(nodes)} nodes can have it",
                code=Code.REQUIREMENTS,
                hint="define it on one of them to hear why not",
            )
        node = random.choice(fitting)  # noqa: S311 (spreads work, keeps no secret)
        if node == self._node_id:
            return self.define_fdu(fdu_id)
        reply = self._connector.ask(
            paths.function(node, "define_fdu"), {"fdu_id": fdu_id}, timeout_s=_DEFINE_S + _CHECK_S
        )
        found: dict[str, Any] = result_of(reply, f"node {node}")
        return found

    def _fitting(self, nodes: list[str], descriptor: dict[str, Any]) -> list[str]:
        parameters = arguments(descriptor=descriptor)
        fitting: list[str] = []

        def ask(node: str) -> None:
            try:
                path = paths.function(node, "check")
                reply = self._connector.ask(path, parameters, timeout_s=_CHECK_S)
                if result_of(reply, node).get("is_compatible") is True:
                    fitting.append(node)
            except (NativertError, OSError, AttributeError):
                pass  # Whoever does not say that it can have it cannot.

        threads = [threading.Thread(target=ask, args=(node,), daemon=True) for node in nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return fitting

    def check(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        """Tell whether this node can have an FDU."""
        try:
            self._hypervisors.plugin(str(descriptor.get("hypervisor")))
            checked = _checked(descriptor)
            if checked:
                self._fits(checked.computation_requirements)
        except NativertError:
            return {"uuid": self._node_id, "is_compatible": False}
        return {"uuid": self._node_id, "is_compatible": True}

    def heartbeat(self, node_id: str) -> dict[str, str]:  # noqa: ARG002 (fog05's signature)
        """Tell that this node is there."""
        return {"nodeid": self._node_id}


def _checked(descriptor: dict[str, Any]) -> descriptors.Descriptor | None:
    """Return what a descriptor for this node's own plugin says; None for another's."""
    if not str(descriptor.get("id") or "") or not str(descriptor.get("hypervisor") or ""):
        raise DescriptorError("id" if not descriptor.get("id") else "hypervisor", "is required")
    if str(descriptor["hypervisor"]).upper() != "BARE":
        if descriptor.get("uuid"):
            syntax.check(syntax.UUID_PATTERN, str(descriptor["uuid"]), "uuid", "a UUID")
        return None
    return descriptors.decode(msgspec.json.encode(descriptor), source="the descriptor")


def _record(descriptor: dict[str, Any], fdu: str, instance: str) -> dict[str, Any]:
    checked = _checked(descriptor)
    if checked:
        return fdu_records.to_builtins(fdu_records.new_record(checked, instance, fdu))
    points = {
        str(point.get("id")): point | {"uuid": str(uuid.uuid4()), "cp_id": point.get("id"),
                                       "status": "CREATE"}
        for point in descriptor["connection_points"]
    }  # fmt: skip
    interfaces = [
        face
        | {"vintf_name": face.get("name"), "status": "CREATE"}
        | ({"cp_id": points[face["cp_id"]]["uuid"]} if face.get("cp_id") in points else {})
        for face in descriptor["interfaces"]
    ]
    storage = [
        {**each, "uuid": str(uuid.uuid4()), "storage_id": each.get("id")}
        for each in descriptor["storage"]
    ]
    own = {name: value for name, value in descriptor.items() if name not in ("id", "name")}
    return own | {
        "uuid": instance,
        "fdu_id": fdu,
        "status": "DEFINE",
        "interfaces": interfaces,
        "connection_points": list(points.values()),
        "storage": storage,
        "error_code": None,
        "error_msg": None,
        "migration_properties": None,
        "hypervisor_info": {},
    }
