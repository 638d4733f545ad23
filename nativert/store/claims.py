"""The host-wide registry: which node has which id ranges, subnet and published ports.

One durable file for all nodes of the host, whatever their --root, changed under one lock.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Final

import msgspec

from nativert.errors import Code, NativertError
from nativert.store import files, registry
from nativert.store.boot import boot_id
from nativert.store.locks import Lock
from nativert.store.pools import (
    BLOCKS,
    ID_END,
    ID_FIRST,
    SUBORDINATE_IDS,
    choose_subnet,
    named_blocks,
    networks_in_use,
)
from nativert.store.registry import NodeClaim, NodeFile, PortOwner, Registry

HOST_REGISTRY: Final = Path("/var/lib/nativert/host.json")
HOST_LOCK: Final = Path("/run/nativert.host.lock")
_LOCK_TIMEOUT_S: Final = 10.0

Commit = Callable[[], None]


class PortClaim(msgspec.Struct, frozen=True):
    """A port of the host to publish; `host_ip` None means every address."""

    host_ip: str | None
    port: int
    protocol: str


class Claims:
    """What the nodes of this host have claimed from each other."""

    def __init__(
        self,
        path: Path = HOST_REGISTRY,
        lock: Path = HOST_LOCK,
        *,
        subordinate_ids: Sequence[Path] = SUBORDINATE_IDS,
    ) -> None:
        self.path = path
        self._lock = lock
        self._subordinate_ids = tuple(subordinate_ids)

    def nodes(self) -> dict[str, NodeClaim]:
        """Return the claims by node id, as last written; takes no lock, changes nothing."""
        return self._peek().nodes

    def ports(self, node: str) -> dict[str, list[PortClaim]]:
        """Return the ports that *node* claimed in this boot, by instance."""
        claimed: dict[str, list[PortClaim]] = {}
        for owner in self._peek().ports:
            if owner.node == node and owner.boot_id == boot_id():
                host_ip = None if owner.host_ip == "*" else owner.host_ip
                claim = PortClaim(host_ip, owner.port, owner.protocol)
                claimed.setdefault(owner.instance, []).append(claim)
        return claimed

    def register(
        self,
        lib: Path,
        *,
        node: Callable[[Registry], NodeFile],
        write: Callable[[NodeFile], None],
        in_use: Callable[[], Iterable[IPv4Network]] = networks_in_use,
    ) -> NodeFile:
        """Enter the node whose node.json is in *lib*, and return it with its claims.

        *node* reads or makes the node, *write* writes its node.json, both under the lock:
        the file comes after the claim, since a claim without it is void. What the node had
        before is kept; a new one gets a subnet chosen by its tag and one block. Raises
        NativertError(STORE) for a copy of a node that lives, and where another node has
        taken what was ours.
        """
        lib = Path(os.path.realpath(lib))
        with self._changed(restore=lib) as (host, commit):
            ours = node(host)
            subnet, blocks = ours.subnet, {*ours.blocks}
            if (known := host.nodes.get(ours.id)) is not None:
                if not registry.same_directory(known.path, lib):
                    raise _copied(lib, known.path)
                subnet, blocks = known.subnet, blocks | {*known.blocks}
            others = [claim for id_, claim in host.nodes.items() if id_ != ours.id]
            for claim in others:
                _refuse_overlap(lib, subnet, blocks, claim)
            if not subnet:
                used = [IPv4Network(claim.subnet) for claim in others]
                subnet = str(choose_subnet(ours.tag, used, in_use()))
            host.nodes[ours.id] = NodeClaim(
                path=str(lib),
                subnet=subnet,
                blocks=tuple(sorted(blocks)) or (self._free_block(host),),
            )
            commit()
            ours = with_claim(ours, host.nodes[ours.id])
            write(ours)
        return ours

    def claim_block(self, node: NodeFile, *, write: Callable[[NodeFile], None]) -> NodeFile:
        """Give *node* a block of 256 id ranges that it does not name; *write* as in `register`.

        Raises NativertError(IDS_EXHAUSTED).
        """
        with self._changed() as (host, commit):
            known = _registered(host, node.id)
            # Commands that run out together need one block, not one each.
            if {*known.blocks} <= {*node.blocks}:
                known = msgspec.structs.replace(
                    known, blocks=tuple(sorted((*known.blocks, self._free_block(host))))
                )
            host.nodes[node.id] = known
            commit()
            node = with_claim(node, known)
            write(node)
        return node

    def claim_ports(self, node: str, instance: str, ports: Sequence[PortClaim]) -> None:
        """Make *ports* the ports of *instance*: all or none; void after a reboot.

        Raises NativertError(PORT_TAKEN) naming the owner.
        """
        netns = os.stat("/proc/thread-self/ns/net").st_ino
        wanted = [
            PortOwner(
                host_ip=_address_or_any(port.host_ip),
                port=port.port,
                protocol=port.protocol,
                node=node,
                instance=instance,
                boot_id=boot_id(),
                netns=netns,
            )
            for port in ports
        ]
        with self._changed() as (host, commit):
            _registered(host, node)
            host.ports = [p for p in host.ports if (p.node, p.instance) != (node, instance)]
            for port in wanted:
                for owner in host.ports:
                    if port.collides(owner):
                        where = "" if owner.node == node else f" of the node at {_at(host, owner)}"
                        raise NativertError(
                            f"port {port.host_ip}:{port.port}/{port.protocol} is published by"
                            f" instance {owner.instance}{where}",
                            code=Code.PORT_TAKEN,
                            hint="choose another host port, or clean that instance",
                        )
                host.ports.append(port)
            commit()

    def release_ports(self, node: str, instance: str) -> None:
        """Give back every port of *instance*; safe to call again."""
        with self._changed() as (host, commit):
            host.ports = [p for p in host.ports if (p.node, p.instance) != (node, instance)]
            commit()

    def release_node(self, node: str) -> None:
        """Forget *node* and all that it claimed; without any node nothing of the registry stays."""
        with self._changed() as (host, commit):
            host.nodes.pop(node, None)
            host.ports = [port for port in host.ports if port.node != node]
            commit()

    def _peek(self) -> Registry:
        try:
            return registry.load(self.path)
        except (FileNotFoundError, files.DamagedError):
            return Registry()  # who changes it next puts a damaged one aside

    @contextmanager
    def _changed(self, *, restore: Path | None = None) -> Iterator[tuple[Registry, Commit]]:
        """Lock, read, drop what is void; the block changes it and calls commit."""
        with Lock(self._lock, what="the registry of the host", timeout_s=_LOCK_TIMEOUT_S) as lock:
            # Under the lock: the last node to leave removes it.
            os.makedirs(self.path.parent, mode=0o700, exist_ok=True)
            host, before = self._load(restore)

            def commit() -> None:
                after = registry.encode(host)
                if not host.nodes:
                    self.path.unlink(missing_ok=True)
                    files.sync_directory(self.path.parent)
                elif after != before:
                    files.replace_durably(self.path, after)

            yield host, commit
            if not host.nodes:
                self._remove_directory()
                lock.forget()

    def _remove_directory(self) -> None:
        try:
            os.rmdir(self.path.parent)
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _load(self, restore: Path | None) -> tuple[Registry, bytes | None]:
        try:
            host = registry.load(self.path)
        except FileNotFoundError:
            return Registry(), None
        except files.DamagedError:
            aside = files.put_aside(self.path)
            return registry.rebuild(aside, (restore,) if restore else ()), None
        before = registry.encode(host)
        registry.drop_void(host)
        return host, before

    def _free_block(self, host: Registry) -> int:
        used = {block for claim in host.nodes.values() for block in claim.blocks}
        used |= named_blocks(self._subordinate_ids)
        for block in range(BLOCKS):
            if block not in used:
                return block
        raise NativertError(
            f"no block of host ids left between {ID_FIRST:#x} and {ID_END:#x}",
            code=Code.IDS_EXHAUSTED,
            hint="remove nodes that are not needed any more, or ranges in /etc/subuid",
        )


def with_claim(node: NodeFile, claim: NodeClaim) -> NodeFile:
    """Return *node* with what *claim* says it has."""
    return msgspec.structs.replace(node, subnet=claim.subnet, blocks=claim.blocks)


def _copied(lib: Path, owner: str) -> NativertError:
    return NativertError(
        f"{lib} is a copy of the node at {owner}, which still exists",
        code=Code.STORE,
        hint=f"empty {lib} to make a node of its own of it, or remove the original",
    )


def _refuse_overlap(lib: Path, subnet: str, blocks: AbstractSet[int], other: NodeClaim) -> None:
    """Raise NativertError(STORE) where the claim *other* covers what is ours."""
    shared = blocks & {*other.blocks}
    same_subnet = subnet and IPv4Network(subnet).overlaps(IPv4Network(other.subnet))
    if not shared and not same_subnet:
        return
    # Only after the registry was lost: two nodes must not run under the same ids.
    what = f"id block {min(shared)}" if shared else f"subnet {subnet}"
    raise NativertError(
        f"{what} of the node at {lib} has been claimed by the node at {other.path}",
        code=Code.STORE,
        hint="undefine the instances of one of the two and empty its directory",
    )


def _registered(host: Registry, node: str) -> NodeClaim:
    claim = host.nodes.get(node)
    if claim is None:
        raise NativertError(
            f"node {node} is not in the registry of the host",
            code=Code.STORE,
            hint="its node.json was removed while it worked: start nativert again",
        )
    return claim


def _at(host: Registry, owner: PortOwner) -> str:
    return host.nodes[owner.node].path


def _address_or_any(host_ip: str | None) -> str:
    if host_ip is None:
        return "*"
    address = ip_address(host_ip)
    return "*" if address.is_unspecified else str(address)
