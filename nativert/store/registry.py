"""What host.json holds: its form, its damage, and what in it has become void."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

import msgspec

from nativert.errors import Code, NativertError
from nativert.store import files
from nativert.store.boot import boot_id
from nativert.store.pools import BLOCKS

VERSION: Final = 1
NODE_VERSION: Final = 1


class NodeClaim(msgspec.Struct, frozen=True, kw_only=True):
    """One node: the directory that holds its node.json, its subnet, its blocks of ids."""

    path: str
    subnet: str
    blocks: tuple[int, ...]


class PortOwner(msgspec.Struct, frozen=True, kw_only=True):
    """One published port; `host_ip` is ``*`` for every address.

    `netns` is the inode of the network namespace whose port it is; 0, of an older nativert, is any.
    """

    host_ip: str
    port: int
    protocol: str
    node: str
    instance: str
    boot_id: str
    netns: int = 0

    def collides(self, other: PortOwner) -> bool:
        """Tell whether the kernel could not tell packets for the two apart."""
        return (
            (self.port, self.protocol) == (other.port, other.protocol)
            and (self.host_ip == other.host_ip or "*" in (self.host_ip, other.host_ip))
            and (self.netns == other.netns or 0 in (self.netns, other.netns))
        )


class _Version(msgspec.Struct):
    version: int


class Registry(msgspec.Struct, kw_only=True):
    """The whole file."""

    version: int = VERSION
    nodes: dict[str, NodeClaim] = {}
    ports: list[PortOwner] = []


class NodeFile(msgspec.Struct, frozen=True, kw_only=True):
    """What node.json holds; the claims in it restore a lost registry."""

    id: str
    tag: str
    name: str
    subnet: str
    blocks: tuple[int, ...]
    version: int = NODE_VERSION


def encode(host: Registry) -> bytes:
    """Return the file's bytes, the same for the same claims."""
    return msgspec.json.format(msgspec.json.encode(host, order="sorted"), indent=1) + b"\n"


def load(path: Path) -> Registry:
    """Return the claims; FileNotFoundError, or DamagedError for what no nativert wrote.

    Raises NativertError(STORE) for the file of a newer version.
    """
    _check_version(path, VERSION)
    host = files.decode(path, Registry)
    claimed: set[int] = set()
    for claim in host.nodes.values():
        _check_claim(claim.subnet, claim.blocks)
        if claimed & set(claim.blocks) or not claim.path.startswith("/"):
            raise files.DamagedError(f"{path}: two nodes with one id block, or a relative path")
        claimed |= set(claim.blocks)
    return host


def read_node(lib: Path) -> NodeFile | None:
    """Return node.json of *lib*, None where there is none; DamagedError if it is unreadable.

    Raises NativertError(STORE) for the file of a newer version.
    """
    try:
        _check_version(lib / "node.json", NODE_VERSION)
        node = files.decode(lib / "node.json", NodeFile)
    except (FileNotFoundError, NotADirectoryError):
        return None
    _check_claim(node.subnet, node.blocks)
    return node


def _check_version(path: Path, known: int) -> None:
    # The version alone: a newer form must not pass for damage and be put aside.
    version = files.decode(path, _Version).version
    if version > known:
        raise NativertError(
            f"{path} has version {version}, this nativert knows {known}",
            code=Code.STORE,
            hint="use the newer nativert that wrote it",
        )


def _check_claim(subnet: str, blocks: Iterable[int]) -> None:
    try:
        IPv4Network(subnet)
    except ValueError as e:
        raise files.DamagedError(str(e)) from e
    if not all(0 <= block < BLOCKS for block in blocks):
        raise files.DamagedError(f"id blocks {blocks}: not in 0..{BLOCKS - 1}")


def owner_lives(node: str, lib: Path) -> bool:
    """Tell whether *lib* still is the directory of *node*; a damaged node.json still is."""
    try:
        found = read_node(lib)
    except (files.DamagedError, NativertError, OSError):
        return True  # damaged, newer, EACCES, EIO: no evidence that it is gone
    return found is not None and found.id == node


def drop_void(host: Registry) -> None:
    """Drop the nodes whose directory is gone, and the ports of other boots and of no node."""
    for node, claim in list(host.nodes.items()):
        if not owner_lives(node, Path(claim.path)):
            del host.nodes[node]
    host.ports = [p for p in host.ports if p.node in host.nodes and p.boot_id == boot_id()]


def rebuild(damaged: Path, known: Iterable[Path]) -> Registry:
    """Return the claims of the nodes that *damaged* still names, from their own node.json.

    Published ports are lost: they come back when their instances are configured again.
    """
    host = Registry()
    try:
        data = files.read(damaged)
    except (OSError, files.DamagedError):
        data = b""
    named = [os.fsdecode(path) for path in re.findall(rb'"path":\s*"(/[^"\\\0]+)"', data)]
    claimed: set[int] = set()
    for lib in dict.fromkeys([*map(Path, named), *known, Path("/var/lib/nativert")]):
        try:
            node = read_node(lib)
        except (files.DamagedError, NativertError, OSError):
            continue
        if node is None or node.id in host.nodes or claimed & set(node.blocks):
            continue
        claimed |= set(node.blocks)
        host.nodes[node.id] = NodeClaim(path=str(lib), subnet=node.subnet, blocks=node.blocks)
    return host


def same_directory(one: str, other: Path) -> bool:
    """Tell whether two paths lead to one directory, as with a bind mount."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
