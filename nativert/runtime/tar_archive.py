"""tar(5), read as a stream: ustar, GNU long names, pax records.

An own reader, because tarfile keeps an extended header of any claimed length in
memory, guesses at damaged headers, and follows a policy that several Python
releases got wrong. Here what is not understood is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from nativert.runtime.compression import Stream
from nativert.runtime.image_errors import ImageError
from nativert.runtime.policy import Kind, Member, refuse

BLOCK: Final = 512
_EXTENDED_BYTES: Final = 1 << 20
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_KINDS: Final = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,  # contiguous: a plain file everywhere today
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.DEVICE,
    b"4": Kind.DEVICE,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_CAPABILITY: Final = (
    "SCHILY.xattr.security.capability",
    "LIBARCHIVE.xattr.security.capability",
)


def is_header(block: bytes) -> bool:
    """Return whether 512 bytes are a tar header, by its check sum."""
    if len(block) != BLOCK:
        return False
    if not any(block):
        return True  # an empty archive begins with its end
    try:
        claimed = _number(block[148:156])
    except ValueError:
        return False
    blanked = block[:148] + b" " * 8 + block[156:]
    total = sum(blanked)
    # Old writers summed signed characters.
    return claimed == total or claimed == total - 256 * sum(byte > 127 for byte in blanked)


def members(stream: Stream, *, max_headers: int) -> Iterator[Member]:
    """Yield each member; the caller reads its `size` bytes from the stream before the next.

    Raises `ImageError` for anything damaged, truncated or not understood.
    """
    pax: dict[str, str] = {}
    long_name = long_link = ""
    for _ in range(max_headers):
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise ImageError("the archive is truncated: it has no end mark")
        if not is_header(block):
            raise ImageError("the archive is damaged: a header has a wrong check sum")
        if not any(block):
            stream.drain()
            return
        flag = block[156:157]
        if flag in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            data = _extended(stream, block)
            if flag == _PAX:
                pax = _pax(data)
            elif flag == _PAX_GLOBAL:
                _refuse_global(_pax(data))
            elif flag == _LONG_NAME:
                long_name = os.fsdecode(data.rstrip(b"\0"))
            else:
                long_link = os.fsdecode(data.rstrip(b"\0"))
            continue
        member = _member(block, flag, pax, long_name, long_link)
        yield member
        if member.size % BLOCK:
            stream.skip(BLOCK - member.size % BLOCK)
        pax, long_name, long_link = {}, "", ""
    raise ImageError(f"the archive holds more than {max_headers} headers")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: base 256, for what octal digits cannot hold
        sign = 1 << (8 * len(field) - 2)
        value = int.from_bytes(field, "big") & (2 * sign - 1)
        return value - 2 * sign if value & sign else value
    text = field.split(b"\0", 1)[0].strip(b" ")
    if text.strip(b"01234567"):
        raise ValueError(field)
    return int(text or b"0", 8)


def _field(block: bytes, start: int, length: int) -> int:
    try:
        return _number(block[start : start + length])
    except ValueError:
        raise ImageError("the archive is damaged: a header holds a number that is none") from None


def _text(block: bytes, start: int, length: int) -> str:
    return os.fsdecode(block[start : start + length].split(b"\0", 1)[0])


def _extended(stream: Stream, block: bytes) -> bytes:
    size = _field(block, 124, 12)
    if not 0 < size <= _EXTENDED_BYTES:
        raise ImageError(f"an extended header is {size} bytes long, the most is {_EXTENDED_BYTES}")
    data = stream.read(size)
    stream.skip(-size % BLOCK)
    if len(data) < size:
        raise ImageError("the archive is truncated: an extended header ends early")
    return data


def _pax(data: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not (space and equals and key) or len(record) < length or not record.endswith(b"\n"):
            raise ImageError("the archive is damaged: a pax record is malformed")
        records[os.fsdecode(key)] = os.fsdecode(value)
        at += length
    return records


def _refuse_global(records: dict[str, str]) -> None:
    for key in records:
        if key in ("path", "linkpath", "size", *_CAPABILITY) or key.startswith("GNU.sparse."):
            raise ImageError(f"the archive sets {key!r} for all its members at once")


def _member(
    block: bytes, flag: bytes, pax: dict[str, str], long_name: str, long_link: str
) -> Member:
    name = _text(block, 0, 100)
    # GNU's own format keeps times where POSIX has the prefix.
    if block[257:263] == b"ustar\0" and (prefix := _text(block, 345, 155)):
        name = f"{prefix}/{name}"
    name = pax.get("path") or long_name or name
    kind = _KINDS.get(flag)
    if flag == b"S" or any(key.startswith("GNU.sparse.") for key in pax):
        raise refuse(name, "it is a sparse file", hint="pack without --sparse")
    if kind is None:
        raise refuse(name, f"its type {flag!r} is not known")
    for key in _CAPABILITY:
        if key in pax:
            raise refuse(
                name,
                "it carries file capabilities",
                hint="pack without --xattrs; an instance gains nothing by them",
            )
    if flag == b"\0" and name.endswith("/"):
        kind = Kind.DIRECTORY  # before ustar a directory had no type of its own
    size = _size(block, pax, name)
    if kind in (Kind.HARDLINK, Kind.SYMLINK) and size:
        raise refuse(name, f"a {kind.value} claims to hold {size} bytes")
    return Member(
        name=name,
        kind=kind,
        mode=_field(block, 100, 8) & 0o7777,
        size=size if kind is Kind.FILE else 0,
        mtime=_mtime(block, pax),
        link=pax.get("linkpath") or long_link or _text(block, 157, 100),
    )


def _size(block: bytes, pax: dict[str, str], name: str) -> int:
    text = pax.get("size")
    if text is None:
        size = _field(block, 124, 12)
    elif text.isascii() and text.isdigit() and len(text) < 20:
        size = int(text)
    else:
        size = -1
    if size < 0:
        raise refuse(name, "its size is not a number")
    return size


def _mtime(block: bytes, pax: dict[str, str]) -> int | None:
    whole = pax.get("mtime", "").partition(".")[0]
    if whole.isascii() and whole.isdigit() and len(whole) < 12:
        return int(whole)
    return _field(block, 136, 12)
