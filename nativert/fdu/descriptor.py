"""The FDU descriptor of fog05 (user_fdu) with its `native` object, decoded strictly.

What this version does not carry out is refused by name, so that nothing is silently ignored. A
local descriptor needs id, name, hypervisor and command or image; fog05 always gives more.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from nativert.errors import DescriptorError
from nativert.fdu import document, syntax
from nativert.fdu.decoding import Part, build, fields
from nativert.fdu.native import Native
from nativert.fdu.points import ConnectionPoint
from nativert.fdu.quantity import FieldError, show

NATIVE_MARK: Final = "#nativert"
MAX_INTERFACES: Final = 64
MAX_DEPENDENCIES: Final = 64
MAX_POINTS: Final = MAX_INTERFACES

_FORMATS: Final = {
    "": None,
    "tar": "tar",
    "tar.gz": "tar",
    "tgz": "tar",
    "tar.xz": "tar",
    "txz": "tar",
    "zip": "zip",
    "directory": "directory",
    "binary": "binary",
}
_SCRIPT: Final = "configuration.script"
_BY_NAME: Final = "only BARE runs native processes"
_RADIO: Final = "only INTERNAL interfaces are made"
_HARDWARE: Final = "an instance gets no device of the host"

Text = Annotated[str, Meta(max_length=4096)]
Name = Annotated[str, Meta(extra_json_schema={"pattern": syntax.NAME_PATTERN})]
Uuid = Annotated[str, Meta(description="a UUID, or empty")]


class Image(Part, frozen=True):
    """Where the application comes from when it is not on the host already."""

    uri: Annotated[str, Meta(min_length=1, max_length=8192)]
    checksum: Annotated[str, Meta(description="SHA-256 in hexadecimal, or empty")] = ""
    format: Literal["", "tar", "tar.gz", "tgz", "tar.xz", "txz", "zip", "directory", "binary"] = ""
    uuid: Uuid = ""
    name: Text = ""

    @property
    def kind(self) -> str | None:
        """tar, zip, directory or binary; None where name and content must tell."""
        return _FORMATS[self.format]

    def __post_init__(self) -> None:
        syntax.check_uuid(self.uuid, "uuid")
        if self.checksum:
            syntax.check("^[0-9a-fA-F]{64}$", self.checksum, "checksum", "64 digits of a SHA-256")
        scheme, separator, rest = self.uri.partition("://")
        if not separator or scheme not in {"file", "http", "https"}:
            expected = "file://, http:// or https://"
            raise FieldError("uri", f"cannot be {show(self.uri)}: expected {expected}")
        syntax.check("^[!-~]+$", self.uri, "uri", "printable ASCII without blanks")
        host, _, path = rest.partition("/")
        if scheme == "file":
            if host:
                expected = "file:/// and an absolute path"
                raise FieldError("uri", f"cannot be {show(self.uri)}: expected {expected}")
            syntax.check_path(f"/{path}".rstrip("/") or "/", "uri")
        elif not host:
            raise FieldError("uri", f"cannot be {show(self.uri)}: expected a host")
        elif "@" in host:
            # Records are published to the whole system.
            raise FieldError("uri", "cannot hold a user or password: records are published")


class Command(Part, frozen=True):
    """The program and its arguments; no shell reads them."""

    binary: Annotated[str, Meta(min_length=1)]
    args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        syntax.check_argument(self.binary, "binary")
        if len(self.binary.encode()) > syntax.MAX_PATH:
            raise FieldError("binary", f"is longer than {syntax.MAX_PATH} bytes")
        for index, argument in enumerate(self.args):
            syntax.check_argument(argument, f"args[{index}]")


class ComputationRequirements(Part, frozen=True):
    """What a node must have before it takes the FDU. Admission only: nothing is limited by it."""

    REFUSED: ClassVar = {
        "gpu_min_count": _HARDWARE,
        "fpga_min_count": _HARDWARE,
        "duty_cycle": "there is no admission by duty cycle",
    }

    cpu_arch: Text = ""
    cpu_min_freq: Annotated[int, Meta(ge=0, le=1_000_000, description="MHz")] = 0
    cpu_min_count: Annotated[int, Meta(ge=0, le=8192)] = 0
    ram_size_mb: Annotated[float, Meta(ge=0, le=2**40)] = 0
    storage_size_gb: Annotated[float, Meta(ge=0, le=2**40)] = 0
    uuid: Uuid = ""
    name: Text = ""

    def __post_init__(self) -> None:
        syntax.check_uuid(self.uuid, "uuid")


class Configuration(Part, frozen=True):
    """A script that runs inside at the end of configure, or a carrier of the native object."""

    REFUSED: ClassVar = {
        "ssh_keys": "an instance has no ssh server",
        "ssh-keys": "an instance has no ssh server",
    }
    REFUSED_VALUES: ClassVar = {"conf_type": {"CLOUD_INIT": "a process has no cloud-init"}}

    script: str
    conf_type: Literal["SCRIPT"] = "SCRIPT"

    @property
    def carries_native(self) -> bool:
        """Whether the script is the native object, as YAML after the line `#nativert`."""
        return _carries_native(self.script)

    def __post_init__(self) -> None:
        if "\0" in self.script:
            raise FieldError("script", "cannot hold NUL")


class VirtualInterface(Part, frozen=True):
    """The device behind an interface. Each is a veth, whatever card a VM would have got."""

    REFUSED_VALUES: ClassVar = {
        "intf_type": {
            "PHYSICAL": _HARDWARE,
            "PCI_PASSTHROUGH": _HARDWARE,
            "SR_IOV": _HARDWARE,
            "BRIDGED": "interfaces are on the bridge of the node only",
            "FOS_MGMT": "there is no management network",
        }
    }

    intf_type: Literal["PARAVIRT", "VIRTIO", "E1000", "RTL8139", "PCNET"] = "VIRTIO"
    vpci: Text = ""
    bandwidth: Annotated[int, Meta(ge=0, le=1_000_000, description="Mbit/s, 0: unlimited")] = 0


class Interface(Part, frozen=True):
    """A network interface inside, on the node's own network or at a connection point."""

    REFUSED: ClassVar = {"ext_cp_id": "name a connection point of the descriptor in cp_id"}
    REFUSED_VALUES: ClassVar = {
        "if_type": {"EXTERNAL": _RADIO, "WLAN": _RADIO, "BLUETOOTH": _RADIO}
    }

    name: Annotated[str, Meta(extra_json_schema={"pattern": syntax.INTERFACE_PATTERN})]
    is_mgmt: bool = False
    if_type: Literal["INTERNAL"] = "INTERNAL"
    mac_address: str = ""
    cp_id: Annotated[str, Meta(description="the id of a connection point, or empty")] = ""
    virtual_interface: VirtualInterface = VirtualInterface()

    def __post_init__(self) -> None:
        expected = "1 to 15 of a-z A-Z 0-9 _ . - starting with letter or digit"
        syntax.check(syntax.INTERFACE_PATTERN, self.name, "name", expected)
        # These are directories of every network namespace's sysctls, and its own loopback.
        if self.name in {"lo", "all", "default"}:
            raise FieldError("name", f"cannot be {self.name}: the kernel uses it itself")
        if self.mac_address:
            syntax.check_mac(self.mac_address, "mac_address")


class Descriptor(Part, frozen=True):
    """What somebody wants to run. Build it with `decode`."""

    REFUSED: ClassVar = {
        "storage": "there are no storage quotas",
        "io_ports": _HARDWARE,
        "geographical_requirements": "a node does not know where it is",
        "energy_requirements": "a node does not know its energy",
    }
    REFUSED_VALUES: ClassVar = {
        "hypervisor": dict.fromkeys(
            ("LXD", "KVM", "KVM_UK", "XEN", "XEN_UK", "MCU", "DOCKER", "ROS2"), _BY_NAME
        ),
    }

    id: Name
    name: Name
    hypervisor: Literal["BARE"]
    uuid: Uuid = ""
    description: Annotated[str, Meta(max_length=65536)] = ""
    image: Image | None = None
    command: Command | None = None
    computation_requirements: ComputationRequirements = ComputationRequirements()
    migration_kind: Literal["COLD", "LIVE"] = "COLD"
    configuration: Configuration | None = None
    interfaces: Annotated[tuple[Interface, ...], Meta(max_length=MAX_INTERFACES)] = ()
    connection_points: Annotated[tuple[ConnectionPoint, ...], Meta(max_length=MAX_POINTS)] = ()
    depends_on: Annotated[tuple[Name, ...], Meta(max_length=MAX_DEPENDENCIES)] = ()
    native: Native = Native()

    @property
    def attended(self) -> bool:
        """Whether somebody must be there while it runs, or before it starts."""
        native = self.native
        return (
            native.restart.policy != "never" or native.health is not None or bool(self.depends_on)
        )

    @property
    def networks(self) -> dict[str, str]:
        """The virtual network of each interface that is on one; the others are on the node's."""
        networks = {point.id: point.vld_ref.lower() for point in self.connection_points}
        named = {each.name: networks.get(each.cp_id, "") for each in self.interfaces}
        return {name: network for name, network in named.items() if network}

    @property
    def fdu_uuid(self) -> str:
        """The FDU's UUID: the given one, or the version 5 UUID of its id in the OID namespace."""
        return self.uuid.lower() or str(uuid.uuid5(uuid.NAMESPACE_OID, self.id))

    @property
    def script(self) -> str | None:
        """The script to run inside at the end of configure."""
        if self.configuration is None or self.configuration.carries_native:
            return None
        return self.configuration.script or None

    def __post_init__(self) -> None:
        syntax.check_name(self.id, "id")
        syntax.check_name(self.name, "name")
        syntax.check_uuid(self.uuid, "uuid")
        if self.command is None and self.image is None:
            raise FieldError("command", "is required where there is no image")
        if self.native.rootfs == "image" and self.image is None:
            raise FieldError("native.rootfs", "cannot be image: the descriptor has no image")
        for index, dependency in enumerate(self.depends_on):
            syntax.check_name(dependency, f"depends_on[{index}]")
            if dependency in (self.id, self.name):
                raise FieldError(f"depends_on[{index}]", "cannot be the FDU itself")
        syntax.check_distinct(list(self.depends_on), "depends_on")
        syntax.check_distinct([interface.name for interface in self.interfaces], "interfaces")
        macs = [interface.mac_address.lower() for interface in self.interfaces]
        syntax.check_distinct([mac or str(index) for index, mac in enumerate(macs)], "interfaces")
        syntax.check_distinct([point.id for point in self.connection_points], "connection_points")
        points = {"", *(point.id for point in self.connection_points)}
        for index, interface in enumerate(self.interfaces):
            if interface.cp_id not in points:
                expected = "the id of one of connection_points"
                reason = f"cannot be {show(interface.cp_id)}: expected {expected}"
                raise FieldError(f"interfaces[{index}].cp_id", reason)
        mode = self.native.network.mode
        if self.interfaces and mode != "private":
            raise FieldError("interfaces", f"cannot be used with native.network.mode {mode}")
        if self.native.network.ports and len(self.networks) == len(self.interfaces):
            reason = "cannot be published without an interface, such as interfaces: [{name: eth0}]"
            if self.interfaces:
                reason = "cannot be published of virtual networks: no interface is on the node's"
            raise FieldError("native.network.ports", reason)


def decode(data: bytes, *, source: str) -> Descriptor:
    """The descriptor in `data`: JSON if it starts with `{`, else YAML.

    Raises `DescriptorError` with the path, the value and what is accepted; `source` names the
    text in the hint.
    """
    try:
        raw = document.read(data, source=source)
        carried = _carried_native(raw)
        if carried is None:
            return build(raw, Descriptor)
        source = f"{_SCRIPT} of {source}"
        assert isinstance(raw, dict)
        native = document.read(carried.encode(), source=_SCRIPT, path="native")
        return build({**raw, "native": native}, Descriptor)
    except DescriptorError as e:
        hint = "" if e.field == source else f"in {source}"
        raise DescriptorError(e.field, e.reason, hint=hint) from None


def encode(descriptor: Descriptor) -> bytes:
    """JSON which `decode` turns into the same descriptor again."""
    tree = msgspec.to_builtins(descriptor)
    if descriptor.configuration is not None and descriptor.configuration.carries_native:
        del tree["native"]
    return msgspec.json.encode(tree)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a descriptor.

    It says all that can be said of single values; rules between fields are checked by `decode`.
    """
    tree: dict[str, Any] = msgspec.json.schema(Descriptor)
    for kind in _parts(Descriptor):
        definition = tree["$defs"][kind.__name__]
        required = definition.get("required", [])
        properties = definition["properties"]
        for key, value in properties.items():
            if key not in required:
                properties[key] = {"anyOf": [value, {"type": "null"}]}
        for key, reason in kind.REFUSED.items():
            properties[key] = {
                "description": f"not supported yet: {reason}",
                "enum": [None, "", 0, [], {}],
            }
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "FDU descriptor",
    }
    # Defaults that are tuples become the lists that JSON has.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode({**head, **tree}))
    return plain


def _parts(kind: type[Part]) -> list[type[Part]]:
    found = [kind]
    for field in fields(kind).values():
        if field.part is not None:
            found += [part for part in _parts(field.part) if part not in found]
    return found


def _carried_native(raw: object) -> str | None:
    """The YAML of the native object in `configuration.script`, where it is one."""
    configuration = raw.get("configuration") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(configuration, dict):
        return None
    script = configuration.get("script")
    if not isinstance(script, str) or not _carries_native(script):
        return None
    if raw.get("native") is not None:
        reason = f"is given twice: here and after {NATIVE_MARK} in {_SCRIPT}"
        raise DescriptorError("native", reason)
    # Nothing but the mark, or only comments, is a native object without fields.
    rest = script.partition("\n")[2]
    lines = (line.strip() for line in rest.splitlines())
    return rest if any(line and not line.startswith("#") for line in lines) else "{}"


def _carries_native(script: str) -> bool:
    return script.partition("\n")[0].rstrip() == NATIVE_MARK
