"""Putting a node back from its backup: all of it, or nothing.

The file is checked whole before anything changes. Everything is then made ready beside the
present state, and takes its place by renames, the store as the last: before that the node is the
restored one without instances, and never a mixture. A failure puts back what was there.

On a host where id ranges or the subnet are somebody else's by now, the node gets others, and
owners of files and addresses follow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

import msgspec

from nativert.errors import Code, NativertError
from nativert.fdu.known import known
from nativert.runtime import backup_archive as archive
from nativert.runtime.backup import check_store
from nativert.runtime.backup_tree import Tree
from nativert.runtime.context import Context
from nativert.store import database, files, registry
from nativert.store.claims import Claims
from nativert.store.locks import Lock, NodeLock
from nativert.store.paths import Paths
from nativert.store.pools import (
    BLOCK_RANGES,
    RANGE_IDS,
    SUBORDINATE_IDS,
    named_blocks,
    networks_in_use,
    range_start,
)
from nativert.store.registry import NodeFile, Registry

_STAGE: Final = ".restore-"
_LOCK_TIMEOUT_S: Final = 10.0
_BLOCK_IDS: Final = RANGE_IDS * BLOCK_RANGES


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """A node that was put back; `renumbered` is what of its claims had to be others."""

    node: str
    name: str
    instances: int
    data: bool
    renumbered: tuple[str, ...]


def restore(
    root: Path | None, file: Path, *, force: bool, claims: Claims | None = None
) -> Restored:
    """Make the node of *root* what *file* holds.

    Raises NativertError(STORE): for a file that is damaged or of a newer nativert, for a node
    that is there and is not to be replaced (*force*), or has instances that are configured.
    """
    head = archive.verify(file)
    paths, claims = Paths(root), claims or Claims()
    there = paths.node.exists() or paths.database.exists()
    if there and not force:
        raise NativertError(
            f"a node keeps its state in {paths.lib} already",
            code=Code.STORE,
            hint="--force replaces it",
        )
    paths.create()
    with _alone(paths):
        if paths.database.exists():
            _leave_host(root, claims)
        # Whoever opens the store waits: it must not make an empty one meanwhile.
        with Lock(paths.run / "store.lock", what="the store", timeout_s=_LOCK_TIMEOUT_S):
            return _Restoring(paths, claims, file, head, force=force).carry_out()


@contextmanager
def _alone(paths: Paths) -> Iterator[None]:
    lock = NodeLock(paths, "agent")
    if not lock.try_acquire():
        raise NativertError("an agent serves the node", code=Code.BUSY, hint="stop it first")
    try:
        yield
    finally:
        lock.release()


def _leave_host(root: Path | None, claims: Claims) -> None:
    """Take the present node off the host, if nothing of it is configured."""
    from nativert.runtime import gc
    from nativert.runtime.observe import observe

    try:
        context = Context(root, here=False, claims=claims)
    except NativertError:
        # Damaged, which is what backups are for; but of this boot nothing may be unknown.
        if Paths(root).instances_run():
            raise
        return
    try:
        for row in context.store.rows():
            if not row.corrupt and observe(context, row).state.value != "DEFINED":
                raise NativertError(
                    f"{row.name} is configured on the node that would be replaced",
                    code=Code.STORE,
                    hint="stop and clean all instances first",
                )
        left = [found.name for found in gc.collect(context, dry_run=False) if not found.removed]
        if left:
            raise NativertError(f"could not be removed: {', '.join(left)}", code=Code.STORE)
    finally:
        context.close()


class _Restoring:
    def __init__(
        self, paths: Paths, claims: Claims, file: Path, head: archive.Head, *, force: bool
    ) -> None:
        self._paths = paths
        self._claims = claims
        self._file = file
        self._head = head
        self._force = force

    def carry_out(self) -> Restored:
        """Do it; everything is undone if something fails."""
        for leftover in self._paths.lib.glob(f"{_STAGE}*"):
            shutil.rmtree(leftover)
        with ExitStack() as always, ExitStack() as undo:
            stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=self._paths.lib))
            always.callback(shutil.rmtree, stage, ignore_errors=True)
            node = self._unpack(stage, {}, (archive.NODE, archive.STORE, archive.ETC))
            self._check(stage)
            self._put_aside(stage, undo)
            claimed = self._claim(node, undo)
            moved = _moved_blocks(node, claimed)
            self._unpack(stage, moved, (archive.INSTANCES,))
            self._renumber(stage / archive.STORE, node, claimed, moved)
            # The renames must not come before what they name.
            os.sync()
            self._place(stage, undo)
            undo.pop_all()
        renumbered = [f"ids {old} to {new}" for old, new in moved.items()]
        if claimed.subnet != node.subnet:
            renumbered.append(f"subnet {node.subnet} to {claimed.subnet}")
        return Restored(
            node=node.id,
            name=node.name,
            instances=self._head.instances,
            data=self._head.data,
            renumbered=tuple(renumbered),
        )

    def _unpack(self, stage: Path, moved: Mapping[int, int], tops: tuple[str, ...]) -> NodeFile:
        tree = Tree(stage, owner=partial(_new_owner, moved))
        with archive.opened(self._file) as tar, contextlib.closing(tree):
            for member in tar:
                if member.name.split("/")[0] in tops:
                    tree.put(member, tar.extractfile(member) if member.isreg() else None)
            tree.finish()
            data = archive.content(tar, tar.getmember(archive.NODE))
        try:
            return msgspec.json.decode(data, type=known(NodeFile))
        except msgspec.DecodeError as e:
            raise archive.damaged(self._file, f"{archive.NODE}: {e}") from e

    def _check(self, stage: Path) -> None:
        path = stage / archive.STORE
        with (
            database.TypedErrors(path),
            contextlib.closing(database.open_existing(path)) as store,
        ):
            check_store(store, path)
        configured = (stage / archive.ETC).is_dir() and any(self._paths.etc.glob("*"))
        if configured and not self._force:
            raise NativertError(
                f"there is a configuration in {self._paths.etc}, and one in {self._file}",
                code=Code.STORE,
                hint="--force replaces it, or move it away",
            )

    def _put_aside(self, stage: Path, undo: ExitStack) -> None:
        aside = stage / "former"
        aside.mkdir()
        try:
            old = registry.read_node(self._paths.lib)
        except files.DamagedError:
            old = None
        store = self._paths.database.name
        # The store first: without it the node is an empty one.
        for name in (store, *(f"{store}{side}" for side in database.SIDES), "i", "node.json"):
            _move(self._paths.lib / name, aside / name, undo)
        if (stage / archive.ETC).is_dir():
            _move(self._paths.etc, aside / archive.ETC, undo)
        if old is not None:
            self._claims.release_node(old.id)
            undo.callback(self._register, old)

    def _register(self, node: NodeFile) -> NodeFile:
        def write(claimed: NodeFile) -> None:
            data = msgspec.json.format(msgspec.json.encode(claimed), indent=1) + b"\n"
            files.replace_durably(self._paths.node, data)

        claimed = self._claims.register(
            self._paths.lib, node=lambda host: _without_foreign(node, host), write=write
        )
        while len(claimed.blocks) < len(node.blocks):
            claimed = self._claims.claim_block(claimed, write=write)
        return claimed

    def _claim(self, node: NodeFile, undo: ExitStack) -> NodeFile:
        def give_back() -> None:
            self._paths.node.unlink(missing_ok=True)
            self._claims.release_node(node.id)

        claimed = self._register(node)
        undo.callback(give_back)
        return claimed

    def _renumber(self, path: Path, old: NodeFile, new: NodeFile, moved: Mapping[int, int]) -> None:
        pool = IPv4Network(old.subnet)
        offset = int(IPv4Network(new.subnet)[0]) - int(pool[0])
        with (
            database.TypedErrors(path),
            contextlib.closing(database.open_existing(path)) as store,
        ):
            store.execute("BEGIN IMMEDIATE")
            # Nothing of that boot is true here, even where it is the same boot.
            store.execute("UPDATE instances SET boot_id = 'restored'")
            if offset:
                # Those of virtual networks, and of other nodes, are of subnets of their own.
                store.execute(
                    "UPDATE addresses SET address = address + ? WHERE address BETWEEN ? AND ?",
                    (offset, int(pool[0]), int(pool[-1])),
                )
            _move_ranges(store, moved)
            store.execute("COMMIT")
            store.execute("PRAGMA journal_mode = DELETE")

    def _place(self, stage: Path, undo: ExitStack) -> None:
        if (stage / archive.ETC).is_dir():
            os.makedirs(self._paths.etc.parent, exist_ok=True)
            _move(stage / archive.ETC, self._paths.etc, undo)
        instances = stage / archive.INSTANCES
        instances.mkdir(mode=0o700, exist_ok=True)
        _move(instances, self._paths.lib / "i", undo)
        _move(stage / archive.STORE, self._paths.database, undo)
        files.sync_directory(self._paths.lib)


def _move(source: Path, target: Path, undo: ExitStack) -> None:
    try:
        os.rename(source, target)
    except FileNotFoundError:
        return
    except OSError as e:
        if e.errno != errno.EXDEV:
            raise
        # Configuration and state may be on two file systems.
        shutil.copytree(source, target, symlinks=True)
        shutil.rmtree(source)
    undo.callback(_move, target, source, ExitStack())


def _without_foreign(node: NodeFile, host: Registry) -> NodeFile:
    """Return *node* with those of its claims that nobody else has here."""
    others = [claim for id_, claim in host.nodes.items() if id_ != node.id]
    taken = {block for claim in others for block in claim.blocks} | named_blocks(SUBORDINATE_IDS)
    subnet = IPv4Network(node.subnet)
    used = [*(IPv4Network(claim.subnet) for claim in others), *networks_in_use()]
    return msgspec.structs.replace(
        node,
        subnet="" if any(subnet.overlaps(network) for network in used) else node.subnet,
        blocks=tuple(block for block in node.blocks if block not in taken),
    )


def _moved_blocks(old: NodeFile, new: NodeFile) -> dict[int, int]:
    """Return the new first host id by the old one, for each block that is another now."""
    lost = [block for block in old.blocks if block not in new.blocks]
    given = [block for block in new.blocks if block not in old.blocks]
    return {
        range_start(before, 0): range_start(after, 0)
        for before, after in zip(lost, given, strict=False)
    }


def _new_owner(moved: Mapping[int, int], number: int) -> int:
    for before, after in moved.items():
        if before <= number < before + _BLOCK_IDS:
            return number - before + after
    return number


def _move_ranges(store: sqlite3.Connection, moved: Mapping[int, int]) -> None:
    for seq, first in store.execute("SELECT seq, id_range FROM instances").fetchall():
        if (now := _new_owner(moved, first)) != first:
            store.execute("UPDATE instances SET id_range = ? WHERE seq = ?", (now, seq))
