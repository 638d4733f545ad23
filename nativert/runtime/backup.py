"""Saving a node's state into one file, while it works.

The store is copied by SQLite's backup API: one state, whatever is written meanwhile. Data and
logs are copied as they are found; whose data must be whole is stopped first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from nativert import __version__
from nativert.errors import Code, NativertError
from nativert.runtime import backup_archive as archive
from nativert.runtime.backup_archive import Head, Writer
from nativert.runtime.walk import walk
from nativert.store import database, files, registry, schema
from nativert.store.paths import Paths, no_node

# ENXIO and ENODEV: a socket, a device. EINVAL: no link any more.
_CHANGED: Final = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.ENODEV,
    errno.EINVAL,
)


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was written."""

    file: str
    node: str
    instances: int
    data: bool
    bytes: int


def save(paths: Paths, file: Path, *, data: bool) -> Saved:
    """Write the state of the node of *paths* into *file*, with *data* also /data and logs.

    It takes the name at the end, complete and on the disk. NativertError: NOT_FOUND where there
    is no node, STORE where its store is damaged, NO_SPACE.
    """
    if not paths.database.exists():
        raise no_node(paths)
    with tempfile.TemporaryDirectory(prefix=".nativert-backup-", dir=file.parent) as work:
        copy, partial = Path(work, "nativert.db"), Path(work, "backup")
        instances = _copy_store(paths.database, copy)
        # After the store: blocks of ids that the node gets are here before they are used.
        node = registry.read_node(paths.lib)
        if node is None:
            raise NativertError(f"{paths.node} is not there", code=Code.STORE)
        trees = {archive.ETC: paths.etc}
        for uuid in instances if data else ():
            for part in archive.KEPT:
                trees[f"{archive.INSTANCES}/{uuid}/{part}"] = paths.instance_lib(uuid) / part
        _check_room(file, trees.values())
        head = Head(
            format=archive.FORMAT,
            nativert=__version__,
            schema=schema.VERSION,
            node=node.id,
            name=node.name,
            created=time.time(),
            instances=len(instances),
            data=data,
        )
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as output:
            writer = Writer(output)
            writer.add(archive.HEAD, msgspec.json.encode(head))
            writer.add(archive.NODE, msgspec.json.encode(node))
            with open(copy, "rb") as store:
                writer.add_file(archive.STORE, store.fileno())
            for name, top in trees.items():
                add_tree(writer, top, name)
            writer.finish()
            output.flush()
            os.fsync(output.fileno())
            size = output.tell()
        os.rename(partial, file)
    files.sync_directory(file.parent)
    return Saved(file=str(file), node=node.id, instances=len(instances), data=data, bytes=size)


def _check_room(file: Path, tops: Iterable[Path]) -> None:
    # A full disk would be everybody's: before, and not when it is.
    needed, room = sum(map(tree_bytes, tops)), os.statvfs(file.parent)
    free = room.f_bavail * room.f_frsize
    if needed > free:
        raise NativertError(
            f"{file}: {needed >> 20} MiB are to be saved, and {free >> 20} MiB are free there",
            code=Code.NO_SPACE,
            hint="name a file elsewhere, or leave out --data",
        )


def _copy_store(source: Path, target: Path) -> list[str]:
    """Copy the store and return the UUIDs of its instances."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    with (
        database.TypedErrors(source),
        contextlib.closing(database.open_existing(source)) as live,
        contextlib.closing(database.open_existing(target)) as copy,
    ):
        live.backup(copy)
        check_store(copy, source)
        # One file: what is in the log goes into it.
        copy.execute("PRAGMA journal_mode = DELETE")
        return [uuid for (uuid,) in copy.execute("SELECT uuid FROM instances ORDER BY seq")]


def check_store(store: sqlite3.Connection, path: Path) -> None:
    """Refuse a store that is damaged, or of a newer version; NativertError(STORE)."""
    found = schema.version(store)
    if not 0 < found <= schema.VERSION:
        raise NativertError(
            f"{path} has schema {found}, this nativert knows {schema.VERSION}", code=Code.STORE
        )
    wrong = store.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if wrong != "ok":
        raise database.damaged(path, str(wrong))


def add_tree(writer: Writer, top: Path, name: str) -> None:
    """Add everything below *top*; what goes away meanwhile is left out.

    Applications write there: no link is followed, whatever takes the place of what.
    """
    for inside, fd in walk(top):
        prefix = f"{name}/{inside}" if inside else name
        if prefix != archive.ETC:
            writer.add_other(prefix, os.fstat(fd))
        for entry in _others(fd):
            with contextlib.suppress(FileNotFoundError):
                _add_entry(writer, f"{prefix}/{entry}", entry, fd)


def tree_bytes(top: Path) -> int:
    """Return about how many bytes `add_tree` adds of *top*."""
    total = 0
    for _, fd in walk(top):
        for name in _others(fd):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                holes = archive.has_holes(status)
                total += status.st_blocks * archive.BLOCK if holes else status.st_size
    return total


def _others(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return sorted(e.name for e in entries if not e.is_dir(follow_symlinks=False))


def _add_entry(writer: Writer, name: str, entry: str, directory: int) -> None:
    status = os.stat(entry, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        with _changing(entry):
            target = os.readlink(entry, dir_fd=directory)
        writer.add_other(name, status, target)
    elif stat.S_ISREG(status.st_mode):
        # O_NONBLOCK: a FIFO may have taken its place.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with _changing(entry):
            fd = os.open(entry, flags, dir_fd=directory)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                writer.add_file(name, fd)
        finally:
            os.close(fd)
    else:
        writer.add_other(name, status)


@contextlib.contextmanager
def _changing(entry: str) -> Iterator[None]:
    """Tell what has become something else since it was looked at as FileNotFoundError."""
    try:
        yield
    except OSError as e:
        # Any other error is no reason to leave a file out.
        if e.errno not in _CHANGED:
            raise
        raise FileNotFoundError(e.errno, "changed meanwhile", entry) from e
