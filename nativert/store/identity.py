"""Who this node is: its id, and the tag that every host-global name of it carries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from nativert.errors import Code, NativertError
from nativert.store import files, registry
from nativert.store.claims import Claims, with_claim
from nativert.store.paths import Paths
from nativert.store.pools import networks_in_use
from nativert.store.registry import NodeClaim, NodeFile, Registry


class Identity(msgspec.Struct, frozen=True):
    """A node: `tag` is 6 hex digits of the hash of `id`, `blocks` its blocks of id ranges."""

    id: str
    tag: str
    name: str
    subnet: IPv4Network
    blocks: tuple[int, ...]

    @property
    def gateway(self) -> str:
        """The address of the node's bridge: the first of the subnet."""
        return str(self.subnet.network_address + 1)


def tag_of(node: str) -> str:
    """Return the tag of the node id *node*."""
    import hashlib

    return hashlib.sha256(node.encode()).hexdigest()[:6]


def open_identity(
    paths: Paths,
    claims: Claims,
    *,
    name: str = "",
    in_use: Callable[[], Iterable[IPv4Network]] = networks_in_use,
) -> Identity:
    """Return the node of *paths*, created and entered in the host's registry where needed.

    One that is made is called *name*, the host's name unless given.
    Raises NativertError(STORE) for a copy of a node that lives, for the node.json of a
    newer version, and for a damaged one that the registry cannot restore.
    """
    try:
        node = registry.read_node(paths.lib)
    except files.DamagedError:
        node = None
    # Every command comes here. The registry is replaced by rename, so reading it takes no
    # lock; only a node that is not in it as it should be goes on to change it.
    if node is None or claims.nodes().get(node.id) != _claim_of(node, paths.lib):
        paths.create()
        node = claims.register(
            paths.lib,
            node=lambda host: _read_or_make(paths, host, name or os.uname().nodename),
            write=lambda node: _write(paths, node),
            in_use=in_use,
        )
    return _identity(node)


def claim_block(paths: Paths, claims: Claims, identity: Identity) -> Identity:
    """Return *identity* with one more block of id ranges; NativertError(IDS_EXHAUSTED)."""
    node = NodeFile(
        id=identity.id,
        tag=identity.tag,
        name=identity.name,
        subnet=str(identity.subnet),
        blocks=identity.blocks,
    )
    return _identity(claims.claim_block(node, write=lambda node: _write(paths, node)))


def _read_or_make(paths: Paths, host: Registry, name: str) -> NodeFile:
    """Return the node of *paths*; called under the registry's lock, so only one is made."""
    try:
        node = registry.read_node(paths.lib)
    except files.DamagedError as e:
        restored = _restored(paths, host, name)
        if restored is None:
            raise NativertError(
                f"{paths.node} is damaged: {e}",
                code=Code.STORE,
                hint=f"restore it from a backup, or empty {paths.lib} to begin a new node",
            ) from e
        files.put_aside(paths.node)
        return restored
    if node is not None:
        return node
    import uuid

    id_ = str(uuid.uuid4())
    return NodeFile(id=id_, tag=tag_of(id_), name=name, subnet="", blocks=())


def _restored(paths: Paths, host: Registry, name: str) -> NodeFile | None:
    for id_, claim in host.nodes.items():
        if registry.same_directory(claim.path, paths.lib):
            node = NodeFile(id=id_, tag=tag_of(id_), name=name, subnet="", blocks=())
            return with_claim(node, claim)
    return None


def _claim_of(node: NodeFile, lib: Path) -> NodeClaim:
    return NodeClaim(path=os.path.realpath(lib), subnet=node.subnet, blocks=node.blocks)


def _write(paths: Paths, node: NodeFile) -> None:
    data = msgspec.json.format(msgspec.json.encode(node), indent=1) + b"\n"
    try:
        if files.read(paths.node) == data:
            return
    except FileNotFoundError:
        pass
    files.replace_durably(paths.node, data)


def _identity(node: NodeFile) -> Identity:
    return Identity(
        id=node.id,
        tag=node.tag,
        name=node.name,
        subnet=IPv4Network(node.subnet),
        blocks=node.blocks,
    )
