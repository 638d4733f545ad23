"""The paths of fog05's global trees that an agent reads and writes; system and tenant are 0."""

from __future__ import annotations

from typing import Final, NamedTuple

_GLOBAL: Final = ("/agfos/0/tenants/0", "/dgfos/0/tenants/0")
ACTUAL, DESIRED = _GLOBAL
CATALOG: Final = f"{ACTUAL}/catalog/fdu"
# What all nodes have, in both trees: a client reads some of it where it has asked for it.
SHARED: Final = tuple(
    f"{tree}/{what}/**"
    for tree in _GLOBAL
    for what in ("catalog/fdu", "image", "flavor", "networks")
)


class InstancePath(NamedTuple):
    """Whose record, or eval, a path below a node is."""

    node: str
    fdu: str
    instance: str


def node(tree: str, node_id: str, leaf: str) -> str:
    """A path of a node: info, status, configuration, or further down."""
    return f"{tree}/nodes/{node_id}/{leaf}"


def instance(tree: str, node_id: str, fdu: str, uuid: str, leaf: str = "info") -> str:
    """An instance's record, or one of its evals; each argument but the tree may be `*`."""
    return f"{tree}/nodes/{node_id}/fdu/{fdu}/instances/{uuid}/{leaf}"


def function(node_id: str, name: str) -> str:
    """Where a node's agent answers."""
    return f"{ACTUAL}/nodes/{node_id}/agent/exec/{name}"


def descriptor(fdu: str) -> str:
    """Where the catalog has a descriptor."""
    return f"{CATALOG}/{fdu}/info"


def alive(node_id: str) -> str:
    """What is alive as long as a node's agent is."""
    return f"/nativert/nodes/{node_id}"


def catalog_of(node_id: str) -> str:
    """Where a node tells everything of its catalog, deletions too."""
    return f"/nativert/{node_id}/catalog"


def overlay_of(node_id: str) -> str:
    """Where a node tells its part in the overlay."""
    return f"/nativert/{node_id}/overlay"


def node_of_overlay(path: str) -> str:
    """Return whose part in the overlay a path has."""
    return path.split("/")[2]


def of_instance(path: str) -> InstancePath:
    """Return whose record a global path has; ValueError for another path."""
    chunks = path.strip("/").split("/")
    if len(chunks) != 11 or chunks[4:10:2] != ["nodes", "fdu", "instances"]:
        raise ValueError(f"not the path of a record: {path}")
    return InstancePath(chunks[5], chunks[7], chunks[9])
