"""A record that somebody else has written, as a descriptor of ours; and what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nativert.errors import Code, DescriptorError, NativertError
from nativert.fdu import descriptor as descriptors
from nativert.fdu import document
from nativert.fdu.descriptor import Descriptor
from nativert.fdu.known import known
from nativert.fdu.states import State
from nativert.runtime import limits

# What a record has of its descriptor, under the same name.
_SAME: Final = (
    "image",
    "command",
    "storage",
    "computation_requirements",
    "geographical_requirements",
    "energy_requirements",
    "hypervisor",
    "migration_kind",
    "configuration",
    "io_ports",
    "depends_on",
)
_OF_INTERFACE: Final = (
    "name",
    "is_mgmt",
    "if_type",
    "mac_address",
    "virtual_interface",
    "cp_id",
    "ext_cp_id",
)
_OF_POINT: Final = ("vld_ref", "cp_type", "port_security_enabled")
_MOVES: Final = ("TAKE_OFF", "LAND", "MIGRATE")
# What is asked for, and the state in which that has been done already.
DONE_IN: Final[Mapping[str, State | None]] = {
    "DEFINE": None,
    "CONFIGURE": State.CONFIGURED,
    "RUN": State.RUNNING,
    "STOP": State.CONFIGURED,
    "PAUSE": State.PAUSED,
    "RESUME": State.RUNNING,
    "CLEAN": State.DEFINED,
    "UNDEFINE": State.UNDEFINED,
    "SCALE": None,
    **dict.fromkeys(_MOVES),
}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is trusted of a record that asks for something; the rest may be a stale echo."""

    uuid: str
    fdu_id: str
    status: str


def decode(data: bytes, source: str) -> tuple[Request, dict[str, Any]]:
    """Return what a record asks for, and the record; raises DescriptorError."""
    if not data.lstrip().startswith(b"{"):
        raise DescriptorError(source, "is not a JSON object")
    tree = document.read(data, source=source)
    assert isinstance(tree, dict)
    try:
        return msgspec.convert(tree, known(Request)), tree
    except msgspec.ValidationError as e:
        text, _, path = str(e).rpartition(" - at `$")
        where = path.strip("`.") or source
        raise DescriptorError(where, (text or str(e)).replace("`", "")) from None


def descriptor_of(record: dict[str, Any], known: dict[str, Any]) -> Descriptor:
    """Return the descriptor of a record; *known* is the catalog's, or empty.

    A record has no id, name and native object: these are the catalog's alone.
    """
    fdu = str(record.get("fdu_id"))
    tree = {name: record[name] for name in _SAME if record.get(name) is not None}
    points = _objects(record, "connection_points")
    # A record's interface names the point of the record, a descriptor's that of the descriptor.
    ids = {str(point.get("uuid")): str(point.get("cp_id")) for point in points}
    tree["connection_points"] = [
        {"id": point.get("cp_id"), **_of(point, _OF_POINT)} for point in points
    ]
    tree["interfaces"] = [
        _of(one, _OF_INTERFACE) | ({"cp_id": ids[one["cp_id"]]} if one.get("cp_id") in ids else {})
        for one in _objects(record, "interfaces")
    ]
    tree |= {"id": known.get("id") or fdu, "name": known.get("name") or f"fdu-{fdu[:8]}"}
    tree["uuid"] = fdu
    if known.get("native") and not _carries_native(record):
        tree["native"] = known["native"]
    return descriptors.decode(msgspec.json.encode(tree), source=f"the record of FDU {fdu}")


def change_of(record: dict[str, Any], known: dict[str, Any]) -> dict[str, object]:
    """Return the limits that a record names, as `Node.scale` takes them."""
    wanted = limits.of_descriptor(descriptor_of(record, known))
    change = {
        name: value
        for name, value in msgspec.structs.asdict(wanted).items()
        if value not in (None, ())
    }
    if not change:
        raise NativertError(
            "cannot scale: the record names no limit",
            code=Code.SCALE,
            hint="put the native object into configuration.script, after a line #nativert",
        )
    return change


def _carries_native(record: dict[str, Any]) -> bool:
    configuration = record.get("configuration")
    script = configuration.get("script") if isinstance(configuration, dict) else None
    first = str(script).partition("\n")[0]
    return first.rstrip() == descriptors.NATIVE_MARK


def _objects(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = record.get(name) or []
    if not isinstance(found, list):
        raise DescriptorError(name, "is not a list")
    for index, one in enumerate(found):
        if not isinstance(one, dict):
            raise DescriptorError(f"{name}[{index}]", "is not an object")
    return found


def _of(part: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: part[name] for name in names if part.get(name) is not None}
