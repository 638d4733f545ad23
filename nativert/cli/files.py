"""`ls`, `get` and `put`: files below an instance's /data."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import click
import msgspec

from nativert.cli import context, output
from nativert.cli.context import Session, pass_session
from nativert.runtime.views import Entry

_CHUNK_BYTES = 256 << 10
_DEFAULT_MODE = 0o644
_DATA = "A PATH is below the instance's /data: `conf/a` and `/data/conf/a` are the same."


@context.command("ls", epilog=_DATA)
@context.instance_argument
@click.argument("path", default="")
@pass_session
def ls(session: Session, instance: str, path: str) -> None:
    """List what a directory of an instance's /data holds, in any state.

    Links are shown, and not followed.
    """
    with session.node() as node:
        found = sorted(node.ls(instance, path), key=lambda entry: entry.name)
    if session.json:
        output.document(found)
        return
    rows = [[e.mode, output.size(e.size_bytes), _time(e.modified_at), _name(e)] for e in found]
    output.table(["MODE", "SIZE", "MODIFIED", "NAME"], rows, numbers=("SIZE",))


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _name(entry: Entry) -> str:
    # As ls -F marks them.
    return entry.name + {"directory": "/", "link": "@"}.get(entry.kind, "")


class _Got(msgspec.Struct):
    """What `get -o json` prints; `file` is where it was put."""

    path: str
    file: str
    size_bytes: int


@context.command("get", epilog=_DATA)
@context.instance_argument
@click.argument("path")
@click.argument("dest", default="-", type=click.Path(allow_dash=True), metavar="[DEST|-]")
@pass_session
def get(session: Session, instance: str, path: str, dest: str) -> None:
    """Copy a file out of an instance's /data, in any state.

    To stdout, or into DEST, which has all of it or stays as it was.
    """
    with session.node() as node:
        pieces = node.read_file(instance, path)
        if dest == "-":
            for piece in pieces:
                output.data(piece)
            return
        target = Path(dest)
        if target.is_dir():
            target /= posixpath.basename(path.rstrip("/"))
        size = _keep(target, pieces)
    if session.json:
        output.document(_Got(path=path, file=str(target), size_bytes=size))
    else:
        output.line(f"{target}: {output.size(size)}")


def _keep(target: Path, pieces: Iterator[bytes]) -> int:
    # Of a link its target is what is replaced, as every program would.
    real = Path(os.path.realpath(target))
    if real.exists() and not real.is_file():
        with real.open("wb", buffering=0) as file:  # A pipe or a device.
            return _copy(pieces, file)
    temporary = real.with_name(f".{real.name[:200]}.{os.urandom(6).hex()}")
    # By the mode that a new file has by the umask.
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(fd, "wb", buffering=0) as file:
            size = _copy(pieces, file)
        os.rename(temporary, real)
    except BaseException:
        os.unlink(temporary)
        raise
    return size


def _copy(pieces: Iterable[bytes], file: IO[bytes]) -> int:
    size = 0
    for piece in pieces:
        output.write_all(file.fileno(), piece)
        size += len(piece)
    return size


@context.command("put", epilog=_DATA)
@context.instance_argument
@click.argument(
    "source", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="SOURCE|-"
)
@click.argument("path")
@pass_session
def put(session: Session, instance: str, source: str, path: str) -> None:
    """Copy a file, or stdin, into an instance's /data, in any state.

    It is there at once or not at all, belongs to the application, and has the permissions of
    SOURCE (of stdin: 0644). What had this name is replaced; a directory is not, and none is made.
    """
    with click.open_file(source, "rb") as file:
        status = os.fstat(file.fileno())
        regular = stat.S_ISREG(status.st_mode)
        mode = stat.S_IMODE(status.st_mode) if regular and source != "-" else _DEFAULT_MODE
        with _whole(file, regular=regular) as content, session.node() as node:
            pieces = iter(lambda: content.read(_CHUNK_BYTES), b"")
            placed = node.write_file(instance, path, pieces, mode=mode)
    if session.json:
        output.document(placed)
    else:
        output.line(f"{path}: {output.size(placed.size_bytes)}")


def _whole(file: IO[bytes], *, regular: bool) -> IO[bytes]:
    """Return *file* in a form that can be read without a wait: an agent does not wait for ever."""
    if regular:
        return file
    # Without a name: nothing stays of it.
    whole = tempfile.TemporaryFile()
    try:
        shutil.copyfileobj(file, whole)
        whole.seek(0)
    except BaseException:
        whole.close()
        raise
    return whole
