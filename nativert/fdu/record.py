"""The record of one instance (infra_fdu) as fog05 publishes it.

Others write records too: unknown keys are passed over, and only what is known is written again.
Both validators of fog05 accept what `encode` writes: no list is null, no optional key is there
without a value, and `hypervisor_info` is never missing.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec

from nativert.errors import DescriptorError
from nativert.fdu import document, syntax
from nativert.fdu.descriptor import Descriptor
from nativert.fdu.known import known
from nativert.fdu.quantity import show
from nativert.fdu.states import State

# The states' own words, and those which only ask for an action, report its progress or an error.
STATUSES: Final = (*(state.wire for state in State), "CLEAN", "STARTING", "STOP", "RESUME", "ERROR")

_NULLS: Final = ("error_code", "error_msg", "migration_properties")
_FREE: Final = frozenset({"hypervisor_info", "properties"})  # any JSON, null included


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The image of the descriptor."""

    uri: str
    checksum: str = ""
    format: str = ""
    uuid: str | None = None
    name: str | None = None


class CommandRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The command of the descriptor."""

    binary: str
    args: tuple[str, ...] = ()


class StorageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A volume; other runtimes have them."""

    uuid: str
    storage_id: str
    storage_type: str
    size: int
    file_system_protocol: str | None = None
    cp_id: str | None = None


class RequirementsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The computation requirements of the descriptor."""

    cpu_arch: str = ""
    cpu_min_freq: int = 0
    cpu_min_count: int = 0
    ram_size_mb: float = 0.0
    storage_size_gb: float = 0.0
    uuid: str | None = None
    name: str | None = None
    gpu_min_count: int | None = None
    fpga_min_count: int | None = None
    duty_cycle: float | None = None


class ConfigurationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of the descriptor."""

    conf_type: str
    script: str
    ssh_keys: tuple[str, ...] | None = None


class VirtualInterfaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The device behind an interface; bandwidth in Mbit/s."""

    intf_type: str = "VIRTIO"
    vpci: str = ""
    bandwidth: int = 0


class InterfaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An interface with its name inside and the link on the host that it is connected to."""

    name: str
    is_mgmt: bool = False
    if_type: str = "INTERNAL"
    virtual_interface: VirtualInterfaceRecord = VirtualInterfaceRecord()
    vintf_name: str
    status: str = "CREATE"  # CREATE, CONNECTED, DISCONNECTED or DESTROY
    mac_address: str | None = None
    cp_id: str | None = None
    ext_cp_id: str | None = None
    phy_face: str | None = None
    veth_face_name: str | None = None
    properties: Any = None


class ConnectionPointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A connection point; `cp_id` is its id in the descriptor."""

    uuid: str
    cp_id: str
    status: str = "CREATE"
    cp_type: str | None = None
    vld_ref: str | None = None
    port_security_enabled: bool | None = None
    veth_face_name: str | None = None
    br_name: str | None = None
    properties: Any = None


class MigrationProperties(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes between which an instance moves."""

    source: str = ""
    destination: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One instance: `uuid` is its own, `fdu_id` that of its descriptor."""

    uuid: str
    fdu_id: str
    status: str
    image: ImageRecord | None = None
    command: CommandRecord | None = None
    storage: tuple[StorageRecord, ...] = ()
    computation_requirements: RequirementsRecord = RequirementsRecord()
    geographical_requirements: dict[str, Any] | None = None
    energy_requirements: dict[str, Any] | None = None
    hypervisor: str = "BARE"
    migration_kind: str = "COLD"
    configuration: ConfigurationRecord | None = None
    interfaces: tuple[InterfaceRecord, ...] = ()
    io_ports: tuple[dict[str, Any], ...] = ()
    connection_points: tuple[ConnectionPointRecord, ...] = ()
    depends_on: tuple[str, ...] = ()
    error_code: int | None = None
    error_msg: str | None = None
    migration_properties: MigrationProperties | None = None
    hypervisor_info: Any = msgspec.field(default_factory=dict)

    @property
    def state(self) -> State | None:
        """The state behind the status; None for a request, a progress report or ERROR."""
        known = {state.wire: state for state in State}
        return known.get(self.status)


def new_record(descriptor: Descriptor, instance_uuid: str, fdu_uuid: str) -> Record:
    """The record of a defined instance of `descriptor`."""
    wanted: dict[str, Any] = msgspec.to_builtins(descriptor)
    points = {each.id: _point_uuid(instance_uuid, each.id) for each in descriptor.connection_points}
    names = ("image", "command", "configuration", "computation_requirements")
    return _convert(
        {
            **{name: wanted[name] and _without_blanks(wanted[name]) for name in names},
            "uuid": instance_uuid,
            "fdu_id": fdu_uuid,
            "status": State.DEFINED.wire,
            "hypervisor": descriptor.hypervisor,
            "migration_kind": descriptor.migration_kind,
            "depends_on": descriptor.depends_on,
            "interfaces": [
                {
                    **_without_blanks(interface),
                    "vintf_name": interface["name"],
                    "cp_id": points.get(interface["cp_id"]),
                }
                for interface in wanted["interfaces"]
            ],
            "connection_points": [
                {**_without_blanks(point), "uuid": points[point["id"]], "cp_id": point["id"]}
                for point in wanted["connection_points"]
            ],
        }
    )


def _point_uuid(instance: str, point: str) -> str:
    # The same whoever makes the record: the agent, and the node that the instance moves to.
    return str(uuid.uuid5(uuid.UUID(instance), point))


def with_status(
    record: Record, status: str, *, error_code: int | None = None, error_msg: str | None = None
) -> Record:
    """The record with another status; an error that is not given is cleared."""
    _check_status(status)
    return msgspec.structs.replace(
        record, status=status, error_code=error_code, error_msg=error_msg
    )


def to_builtins(record: Record) -> dict[str, Any]:
    """The record as it is written: only the errors and the migration may be null."""
    tree: dict[str, Any] = msgspec.to_builtins(record)
    return {**dict.fromkeys(_NULLS), **_without_nulls(tree)}


def encode(record: Record) -> bytes:
    """The record as JSON."""
    return msgspec.json.encode(to_builtins(record))


def decode(data: bytes, *, source: str) -> Record:
    """The record in `data`, which is JSON; raises `DescriptorError`."""
    # Anything else would be read as YAML, which nobody writes records in.
    if not data.lstrip().startswith(b"{"):
        raise DescriptorError(source, "is not a JSON object")
    tree = document.read(data, source=source)
    assert isinstance(tree, dict)
    return _convert(_without_nulls(tree))


def _convert(tree: dict[str, Any]) -> Record:
    try:
        record = msgspec.convert(_without_nulls(tree), known(Record))
        syntax.check(syntax.UUID_PATTERN, record.uuid, "uuid", "a UUID")
        syntax.check(syntax.UUID_PATTERN, record.fdu_id, "fdu_id", "a UUID")
    except msgspec.ValidationError as e:
        text, _, path = str(e).rpartition(" - at `$")
        path = path.strip("`.") or "record"
        raise DescriptorError(path, (text or str(e)).replace("`", "")) from None
    _check_status(record.status)
    return record


def _check_status(status: str) -> None:
    if status not in STATUSES:
        expected = ", ".join(STATUSES)
        raise DescriptorError("status", f"cannot be {show(status)}: expected one of {expected}")


def _without_blanks(part: dict[str, Any]) -> dict[str, Any]:
    """The part without optional keys that are empty: fog05 checks the form of what is there."""
    optional = {"uuid", "name", "mac_address", "cp_id", "vld_ref", "cp_type"}
    return {key: value for key, value in part.items() if value or key not in optional}


def _without_nulls(value: Any) -> Any:
    """The tree without keys that are null: to fog05 the same as absent."""
    if isinstance(value, dict):
        return {
            key: member if key in _FREE else _without_nulls(member)
            for key, member in value.items()
            if member is not None or key == "hypervisor_info"
        }
    if isinstance(value, (list, tuple)):
        return [_without_nulls(member) for member in value]
    return value
