"""The file of a backup: a tar whose last member is the SHA-256 of all bytes before it.

    backup.json    which node, when, by which nativert
    node.json      the node's identity
    nativert.db    the store, one consistent state
    etc/...        the configuration
    i/<uuid>/...   data and log of each instance, where asked for
    sha256

Nothing else may be in it. Owners are numbers; names are not looked up.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from nativert.errors import Code, NativertError
from nativert.fdu.known import known
from nativert.store.paths import check_uuid

FORMAT: Final = 1
HEAD: Final = "backup.json"
NODE: Final = "node.json"
STORE: Final = "nativert.db"
ETC: Final = "etc"
INSTANCES: Final = "i"
KEPT: Final = ("data", "log")
_SUM: Final = "sha256"
_PIECE: Final = 1 << 20
BLOCK: Final = 512  # of st_blocks, whatever the file system's is; see stat(3type)
# Holes that are not worth an entry of their own.
_HOLE: Final = 1 << 20
_OLD_LIMIT: Final = 8 << 30
_ENCODING: Final = "utf-8"
_ERRORS: Final = "surrogateescape"
# A tar ends with two empty blocks.
_END: Final = 2 * tarfile.BLOCKSIZE
_HEAD_LIMIT: Final = 1 << 16


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup says of itself; `created` is in seconds since the epoch."""

    format: int
    nativert: str
    schema: int
    node: str
    name: str
    created: float
    instances: int
    data: bool


class _Format(msgspec.Struct):
    format: int


class Writer:
    """Writes the members of a backup in their order; `finish` completes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()

    def add(self, name: str, data: bytes) -> None:
        """Add a file of nativert's own."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o600
        self._begin(member)
        self._write(data)
        self._fill_up(len(data))

    def add_file(self, name: str, fd: int) -> None:
        """Add the open file *fd*, as long as it is now: what is cut off meanwhile reads as 0.

        Of one with holes only what is no hole, as GNU tar's sparse format 0.1 has it.
        """
        status = os.fstat(fd)
        member = _member(name, status)
        parts = _data(fd, status.st_size) if has_holes(status) else []
        if not parts or sum(size for _, size in parts) >= _OLD_LIMIT:
            # A file system that compresses has few blocks and no holes.
            parts = [(0, status.st_size)]
        else:
            pairs = ",".join(f"{offset},{size}" for offset, size in parts)
            member.pax_headers = {"GNU.sparse.size": str(status.st_size), "GNU.sparse.map": pairs}
        member.size = sum(size for _, size in parts)
        self._begin(member)
        for offset, size in parts:
            end = offset + size
            while offset < end:
                wanted = min(end - offset, _PIECE)
                piece = os.pread(fd, wanted, offset) or bytes(wanted)
                self._write(piece)
                offset += len(piece)
        self._fill_up(member.size)

    def add_other(self, name: str, status: os.stat_result, target: str = "") -> None:
        """Add a directory, a symbolic link to *target*, or a FIFO."""
        member = _member(name, status)
        for is_kind, kind in (
            (stat.S_ISDIR, tarfile.DIRTYPE),
            (stat.S_ISLNK, tarfile.SYMTYPE),
            (stat.S_ISFIFO, tarfile.FIFOTYPE),
        ):
            if is_kind(status.st_mode):
                member.type, member.linkname = kind, target
                self._begin(member)

    def finish(self) -> None:
        """Add the sum and the end."""
        self.add(_SUM, self._sum.hexdigest().encode())
        self._write(bytes(_END))

    def _begin(self, member: tarfile.TarInfo) -> None:
        self._write(member.tobuf(tarfile.PAX_FORMAT, _ENCODING, _ERRORS))

    def _fill_up(self, size: int) -> None:
        self._write(bytes(-size % tarfile.BLOCKSIZE))

    def _write(self, data: bytes) -> None:
        self._sum.update(data)
        self._file.write(data)


def has_holes(status: os.stat_result) -> bool:
    """Tell whether a file is saved without its holes.

    Not where it has more data than an old header's size field can tell: tarfile takes the
    record that has it then for the size with holes.
    """
    data = status.st_blocks * BLOCK
    return data + _HOLE < status.st_size and data < _OLD_LIMIT


def _data(fd: int, size: int) -> list[tuple[int, int]]:
    """Return (offset, bytes) of what is no hole of some size; see lseek(2)."""
    found: list[tuple[int, int]] = []
    end = 0
    while end < size:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
            if begin >= size:
                break  # It has grown since.
            end = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        except OSError as e:
            if e.errno != errno.ENXIO:
                raise
            break  # Nothing but a hole is left, or it was cut off.
        if found and begin - sum(found[-1]) < _HOLE:
            begin = found.pop()[0]
        found.append((begin, end - begin))
    # One that ends it, so that its size is known even if all of it is a hole.
    return [*found, (size, 0)]


def _member(name: str, status: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(status.st_mode)
    member.uid, member.gid = status.st_uid, status.st_gid
    member.mtime = int(status.st_mtime)
    return member


@contextmanager
def opened(file: Path) -> Iterator[tarfile.TarFile]:
    """Read the backup *file*; NativertError(STORE) for what is no tar, or ends too early."""
    try:
        with tarfile.open(file, "r:", encoding=_ENCODING, errors=_ERRORS) as tar:
            yield tar
    except (tarfile.TarError, EOFError) as e:
        raise damaged(file, str(e)) from e


def verify(file: Path) -> Head:
    """Return what *file* says of itself, after its sum, its form and its names were checked."""
    with opened(file) as tar:
        members = tar.getmembers()
        if len(members) < 4 or members[0].name != HEAD or members[-1].name != _SUM:
            raise damaged(file, "it does not begin and end as a backup does")
        told = content(tar, members[-1])
        for member in members[1:-1]:
            _check_name(file, member)
        _check_sum(file, members[-1], told)
        head = content(tar, members[0])
    try:
        version = msgspec.json.decode(head, type=known(_Format)).format
        if version > FORMAT:
            raise NativertError(
                f"{file} has format {version}, this nativert knows {FORMAT}",
                code=Code.STORE,
                hint="use the newer nativert that wrote it",
            )
        return msgspec.json.decode(head, type=known(Head))
    except msgspec.DecodeError as e:
        raise damaged(file, f"{HEAD}: {e}") from e


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return a small file of the backup."""
    file = tar.extractfile(member) if member.isreg() and member.size <= _HEAD_LIMIT else None
    if file is None:
        raise tarfile.ReadError(f"{member.name} is not a small file")
    return file.read()


def damaged(file: Path, reason: str) -> NativertError:
    """Return the error for a file that cannot be what was written."""
    return NativertError(
        f"{file} is damaged, or no backup of nativert: {reason}",
        code=Code.STORE,
        hint="use another copy; nothing was changed",
    )


def _check_sum(file: Path, last: tarfile.TarInfo, told: bytes) -> None:
    found = hashlib.sha256()
    with open(file, "rb") as raw:
        left = last.offset
        while left and (piece := raw.read(min(left, _PIECE))):
            found.update(piece)
            left -= len(piece)
        raw.seek(last.offset_data + len(told))
        end = raw.read(_PIECE)
    whole = end == bytes(-len(told) % tarfile.BLOCKSIZE + _END)
    if not whole or found.hexdigest().encode() != told:
        raise damaged(file, "its content does not have the SHA-256 that it ends with")


def _check_name(file: Path, member: tarfile.TarInfo) -> None:
    parts = member.name.split("/")
    known = (
        (member.name in (NODE, STORE) and member.isreg())
        or (parts[0] == ETC and len(parts) > 1)
        or (parts[0] == INSTANCES and len(parts) > 2 and parts[2] in KEPT)
    )
    kinds = member.isreg() or member.isdir() or member.issym() or member.isfifo()
    if not known or not kinds or {"", ".", ".."} & {*parts}:
        raise damaged(file, f"{member.name[:200]!r} does not belong in it")
    if parts[0] == INSTANCES:
        check_uuid(parts[1])
