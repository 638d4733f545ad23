"""zip archives, read by their central directory, one member at a time.

An own reader, because zipfile loads a central directory of any claimed length
into memory before the first member can be judged.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from nativert.runtime.compression import CHUNK
from nativert.runtime.image_errors import ImageError
from nativert.runtime.policy import PATH_BYTES, Kind, Member, refuse

# PKWARE APPNOTE 4.3.7, 4.3.12, 4.3.14 to 4.3.16
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_END64_LOCATOR: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_MAX32: Final = 0xFFFFFFFF
_MAX16: Final = 0xFFFF
_ENCRYPTED: Final = 0x1
_UTF8: Final = 0x800
_STORED: Final = 0
_DEFLATED: Final = 8
_UNIX: Final = 3
_KINDS: Final = {
    0: Kind.FILE,
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.DEVICE,
    stat.S_IFBLK: Kind.DEVICE,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A member, and where its data is; sizes in bytes."""

    member: Member
    method: int
    crc: int
    packed: int
    header: int


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the central directory is, and how many members it claims."""

    offset: int
    size: int
    members: int


def directory(fd: int) -> Directory:
    """Find the central directory; raises `ImageError` where there is none."""
    length = os.fstat(fd).st_size
    tail_at = max(0, length - _END.size - _MAX16)
    tail = _read(fd, length - tail_at, tail_at)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise ImageError("the zip archive is truncated: it has no central directory")
    _, disk, start_disk, _, count, size, offset, _ = _END.unpack_from(tail, at)
    if disk or start_disk:
        raise ImageError("the zip archive is one of several parts")
    if count == _MAX16 or _MAX32 in (size, offset):
        locator = _read(fd, _END64_LOCATOR.size, max(0, tail_at + at - _END64_LOCATOR.size))
        if len(locator) == _END64_LOCATOR.size and locator[:4] == b"PK\6\7":
            end64 = _read(fd, _END64.size, _END64_LOCATOR.unpack(locator)[2])
            if len(end64) < _END64.size or end64[:4] != b"PK\6\6":
                raise ImageError("the zip archive is damaged: no zip64 directory")
            *_, count, size, offset = _END64.unpack(end64)
    if offset + size > tail_at + at:
        raise ImageError("the zip archive is damaged: its directory is not where it says")
    return Directory(offset=offset, size=size, members=count)


def entries(fd: int, where: Directory) -> Iterator[Entry]:
    """Yield each member as the central directory has it."""
    at, end = where.offset, where.offset + where.size
    while at < end:
        fixed = _read(fd, _CENTRAL.size, at)
        if len(fixed) < _CENTRAL.size or fixed[:4] != b"PK\1\2":
            raise ImageError("the zip archive is damaged: a directory entry is malformed")
        values = _CENTRAL.unpack(fixed)
        made_by, flags, method, crc, packed, size = (values[i] for i in (1, 3, 4, 7, 8, 9))
        name_length, extra_length, comment_length = values[10:13]
        attributes, header = values[15:17]
        variable = _read(fd, name_length + extra_length, at + _CENTRAL.size)
        if len(variable) < name_length + extra_length:
            raise ImageError("the zip archive is truncated: a directory entry ends early")
        name = _name(variable[:name_length], utf8=bool(flags & _UTF8))
        size, packed, header = _zip64(variable[name_length:], size, packed, header)
        if header + packed > where.offset:
            raise refuse(name, "its data is not where the directory says")
        if flags & _ENCRYPTED:
            raise refuse(name, "it is encrypted")
        if method not in (_STORED, _DEFLATED):
            raise refuse(
                name, f"its compression method {method} is not known", hint="use deflate or store"
            )
        mode = attributes >> 16 if made_by >> 8 == _UNIX else 0
        yield Entry(
            member=_member(name, mode, size), method=method, crc=crc, packed=packed, header=header
        )
        at += _CENTRAL.size + name_length + extra_length + comment_length


def contents(fd: int, entry: Entry) -> Iterator[bytes]:
    """Yield the data of a member; raises `ImageError` where it is not what the directory says."""
    import zlib

    name = entry.member.name
    crc = given = 0
    packed = _packed(fd, entry)
    for data in packed if entry.method == _STORED else _inflated(name, packed):
        given += len(data)
        if given > entry.member.size:
            break
        crc = zlib.crc32(data, crc)
        yield data
    if given != entry.member.size:
        raise refuse(name, f"it does not unpack to the {entry.member.size} bytes that it claims")
    if crc != entry.crc:
        raise refuse(name, "its data is damaged: wrong CRC")


def with_target(fd: int, entry: Entry) -> Member:
    """Return a symbolic link with its target, which zip keeps as the member's data."""
    if entry.member.size > PATH_BYTES:
        raise refuse(entry.member.name, "the link's target is too long")
    return replace(entry.member, link=os.fsdecode(b"".join(contents(fd, entry))))


def _read(fd: int, size: int, offset: int) -> bytes:
    # Offsets are claims of up to 64 bits; off_t is signed.
    return os.pread(fd, size, offset) if offset < 1 << 62 else b""


def _name(raw: bytes, *, utf8: bool) -> str:
    if utf8:
        return os.fsdecode(raw)
    try:
        # Without the flag it ought to be code page 437; many writers put UTF-8 all the same.
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _member(name: str, mode: int, size: int) -> Member:
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind is None:
        raise refuse(name, f"its type {stat.S_IFMT(mode):#o} is not known")
    if name.endswith("/") and kind is Kind.FILE:
        kind = Kind.DIRECTORY
    return Member(name=name, kind=kind, mode=stat.S_IMODE(mode), size=size)


def _zip64(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Take the values that did not fit 32 bits from the zip64 field (APPNOTE 4.5.3)."""
    values = [size, packed, header]
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if tag == 1:
            wanted = [i for i, value in enumerate(values) if value == _MAX32]
            if len(field) < 8 * len(wanted):
                raise ImageError("the zip archive is damaged: a zip64 field is too short")
            for position, i in enumerate(wanted):
                values[i] = struct.unpack_from("<Q", field, 8 * position)[0]
        at += 4 + length
    return values[0], values[1], values[2]


def _packed(fd: int, entry: Entry) -> Iterator[bytes]:
    fixed = _read(fd, _LOCAL.size, entry.header)
    if len(fixed) < _LOCAL.size or fixed[:4] != b"PK\3\4":
        raise refuse(entry.member.name, "its data is not where the directory says")
    name_length, extra_length = _LOCAL.unpack(fixed)[9:11]
    at = entry.header + _LOCAL.size + name_length + extra_length
    left = entry.packed
    while left:
        data = _read(fd, min(left, CHUNK), at)
        if not data:
            raise refuse(entry.member.name, "its data ends early: the archive is truncated")
        at += len(data)
        left -= len(data)
        yield data


def _inflated(name: str, packed: Iterator[bytes]) -> Iterator[bytes]:
    import zlib

    z = zlib.decompressobj(wbits=-15)
    try:
        for data in packed:
            while data and not z.eof:
                yield z.decompress(data, CHUNK)
                data = z.unconsumed_tail
        # A match may still be half copied when the last byte of input is taken.
        while not z.eof and (data := z.decompress(b"", CHUNK)):
            yield data
    except zlib.error as e:
        raise refuse(name, f"its data is damaged: {e}") from e
    if not z.eof:
        raise refuse(name, "its data is damaged: deflate ends early")
