"""Connection points: where interfaces of an FDU meet virtual networks, as fog05 has them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nativert.fdu import syntax
from nativert.fdu.decoding import Part

Text = Annotated[str, Meta(max_length=4096)]
Uuid = Annotated[str, Meta(description="a UUID, or empty")]


class ConnectionPoint(Part, frozen=True):
    """A point that interfaces name by its id; `vld_ref` is the network that it belongs to."""

    id: Annotated[str, Meta(extra_json_schema={"pattern": syntax.NAME_PATTERN})]
    name: Text = ""
    short_name: Text = ""
    uuid: Uuid = ""
    vld_ref: Annotated[str, Meta(description="the UUID of a virtual network, or empty")] = ""
    cp_type: Literal["", "VPORT"] = ""
    # An application can change neither its address nor its MAC: true and false are the same.
    port_security_enabled: bool = False

    def __post_init__(self) -> None:
        syntax.check_name(self.id, "id")
        syntax.check_uuid(self.uuid, "uuid")
        syntax.check_uuid(self.vld_ref, "vld_ref")
