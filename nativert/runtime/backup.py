"""Saving a node's state into one file, while it works.

The store is copied by SQLite's backup API: one state, whatever is written meanwhile. Data and
logs are copied as they are found; whose data must be whole is stopped first.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import tempfile
import time
from pathlib import Path

import msgspec

from nativert import __version__
from nativert.errors import Code, NativertError
from nativert.runtime import backup_archive as archive
from nativert.runtime.backup_archive import Head, Writer
from nativert.store import database, files, registry, schema
from nativert.store.paths import Paths


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was written."""

    file: str
    node: str
    instances: int
    data: bool
    bytes: int


def save(paths: Paths, file: Path, *, data: bool) -> Saved:
    """Write the state of the node of *paths* into *file*, with *data* also /data and logs.

    It takes the name at the end, complete and on the disk. NativertError(STORE) where there is
    no node, or its store is damaged.
    """
    if not paths.database.exists():
        raise NativertError(
            f"no node keeps its state in {paths.lib}", code=Code.STORE, hint="see --root"
        )
    with tempfile.TemporaryDirectory(prefix=".nativert-backup-", dir=file.parent) as work:
        copy, partial = Path(work, "nativert.db"), Path(work, "backup")
        instances = _copy_store(paths.database, copy)
        # After the store: blocks of ids that the node gets are here before they are used.
        node = registry.read_node(paths.lib)
        if node is None:
            raise NativertError(f"{paths.node} is not there", code=Code.STORE)
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
            add_tree(writer, paths.etc, archive.ETC)
            for uuid in instances if data else ():
                for part in archive.KEPT:
                    name = f"{archive.INSTANCES}/{uuid}/{part}"
                    add_tree(writer, paths.instance_lib(uuid) / part, name)
            writer.finish()
            output.flush()
            os.fsync(output.fileno())
            size = output.tell()
        os.rename(partial, file)
    files.sync_directory(file.parent)
    return Saved(file=str(file), node=node.id, instances=len(instances), data=data, bytes=size)


def _copy_store(source: Path, target: Path) -> list[str]:
    """Copy the store and return the UUIDs of its instances."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    with (
        database.typed_errors(source),
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
    if not top.is_dir() or top.is_symlink():
        return
    for directory, _, entries, fd in os.fwalk(top, follow_symlinks=False):
        inside = os.path.relpath(directory, top)
        prefix = name if inside == "." else f"{name}/{inside}"
        if prefix != archive.ETC:
            writer.add_other(prefix, os.fstat(fd))
        for entry in _others(fd, entries):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _add_entry(writer, f"{prefix}/{entry}", entry, fd)


def _others(fd: int, entries: list[str]) -> list[str]:
    # fwalk counts links to directories among the directories that it does not enter.
    links = [e.name for e in os.scandir(fd) if e.is_symlink()]
    return sorted({*entries, *links})


def _add_entry(writer: Writer, name: str, entry: str, directory: int) -> None:
    status = os.stat(entry, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        writer.add_other(name, status, os.readlink(entry, dir_fd=directory))
    elif stat.S_ISREG(status.st_mode):
        # O_NONBLOCK: a FIFO may have taken its place.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(entry, flags, dir_fd=directory)
        except OSError as e:
            raise FileNotFoundError(e.errno, "changed meanwhile", entry) from e
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                writer.add_file(name, fd)
        finally:
            os.close(fd)
    else:
        writer.add_other(name, status)
