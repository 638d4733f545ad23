"""The manifest of a plugin, as fog05 has it: decoded strictly."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from nativert.errors import DescriptorError
from nativert.fdu import document, syntax
from nativert.fdu.decoding import Part, build
from nativert.fdu.quantity import FieldError, show

MAX_BYTES: Final = 1 << 16
_NAMESPACE: Final = uuid.NAMESPACE_OID
_Name = Annotated[str, Meta(min_length=1, max_length=64)]


class Manifest(Part, frozen=True):
    """A plugin: `name` selects what it runs (`native` is BARE), `type` is runtime, os, network.

    `pid` and `status` are what a running one publishes.
    """

    uuid: str
    name: _Name
    version: int
    type: _Name
    status: str | None = None
    pid: int | None = None
    requirements: tuple[str, ...] = ()
    description: str = ""
    url: str = ""
    configuration: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        syntax.check(syntax.UUID_PATTERN, self.uuid, "uuid", "a UUID")
        syntax.check_name(self.name, "name")
        syntax.check_name(self.type, "type")


class NativeConfiguration(Part, frozen=True):
    """What the native plugin takes of its manifest; intervals in seconds.

    `ylocator` is for those who reach an agent over the network, `credentials` the file with
    what they show there, relative to the manifest.
    """

    nodeid: str = ""
    ylocator: str = ""
    credentials: str = ""
    update_interval: float | str = 10.0
    isolation: bool = True

    @property
    def update_interval_s(self) -> float:
        """How often the figures of what runs are published."""
        return float(self.update_interval)

    def __post_init__(self) -> None:
        if not self.isolation:
            raise FieldError("isolation", "cannot be false: every instance is isolated")
        try:
            valid = 0.1 <= float(self.update_interval) <= 86400
        except ValueError:
            valid = False
        if not valid:
            value = show(self.update_interval)
            raise FieldError("update_interval", f"cannot be {value}: expected 0.1 to 86400")


def decode(data: bytes, *, source: str) -> Manifest:
    """Return the manifest in *data*, which is JSON; raises DescriptorError with the path."""
    if len(data) > MAX_BYTES:
        raise DescriptorError(source, f"has {len(data)} bytes: expected at most {MAX_BYTES}")
    if not data.lstrip().startswith(b"{"):
        raise DescriptorError(source, "is not a JSON object")
    try:
        return build(document.read(data, source=source), Manifest)
    except DescriptorError as e:
        hint = "" if e.field == source else f"in {source}"
        raise DescriptorError(e.field, e.reason, hint=hint) from None


def native_configuration(manifest: Manifest) -> NativeConfiguration:
    """Return the native plugin's part of a manifest; raises DescriptorError."""
    try:
        return build(manifest.configuration, NativeConfiguration)
    except DescriptorError as e:
        raise DescriptorError(f"configuration.{e.field}", e.reason) from None


def default(node_id: str, name: str, kind: str) -> Manifest:
    """Return the manifest of an installed plugin that has none: its UUID is always the same."""
    own = str(uuid.uuid5(_NAMESPACE, f"{node_id}/{kind}/{name}"))
    return Manifest(uuid=own, name=name, version=1, type=kind)


def encode(manifest: Manifest, **changes: object) -> bytes:
    """Return the manifest as JSON with *changes* in it, without what has no value."""
    tree = msgspec.to_builtins(msgspec.structs.replace(manifest, **changes))
    return msgspec.json.encode({name: value for name, value in tree.items() if value is not None})
