"""The paths of fog05 that a runtime plugin uses; see its trees alfos, dlfos and agfos."""

from __future__ import annotations

from typing import Final, NamedTuple

ACTUAL: Final = "/alfos"
DESIRED: Final = "/dlfos"
CATALOG: Final = "/agfos/0/tenants/0/catalog/fdu"
EVALS: Final = ("start", "run", "log", "ls", "get")


class InstanceKey(NamedTuple):
    """Whose record a path has."""

    fdu: str
    instance: str


def plugin(node: str, uuid: str) -> str:
    """Where a plugin's manifest is."""
    return f"{ACTUAL}/{node}/plugins/{uuid}/info"


def record(tree: str, node: str, runtime: str, fdu: str, instance: str) -> str:
    """Where an instance's record is; each argument but the tree may be `*`."""
    return f"{tree}/{node}/runtimes/{runtime}/fdu/{fdu}/instances/{instance}/info"


def instance_eval(node: str, runtime: str, fdu: str, instance: str, name: str) -> str:
    """Where an instance answers."""
    return f"{ACTUAL}/{node}/runtimes/{runtime}/fdu/{fdu}/instances/{instance}/{name}"


def os_eval(node: str, name: str) -> str:
    """Where the OS plugin answers."""
    return f"{ACTUAL}/{node}/os/exec/{name}"


def network_eval(node: str, manager: str, name: str) -> str:
    """Where a network plugin answers."""
    return f"{ACTUAL}/{node}/network_managers/{manager}/exec/{name}"


def agent_eval(node: str, name: str) -> str:
    """Where the agent answers."""
    return f"{ACTUAL}/{node}/agent/exec/{name}"


def descriptor(fdu: str) -> str:
    """Where the catalog has a descriptor."""
    return f"{CATALOG}/{fdu}/info"


def of_record(path: str) -> InstanceKey:
    """Return whose record *path* has; ValueError for another path."""
    chunks = path.strip("/").split("/")
    if len(chunks) != 9 or chunks[2::2] != ["runtimes", "fdu", "instances", "info"]:
        raise ValueError(f"not the path of a record: {path}")
    return InstanceKey(chunks[5], chunks[7])
