"""What is changed in images before they are restored: which namespaces are to be made.

An image file is one or two magic numbers and messages of protocol buffers, each after its length
in 32 bits; those that are changed here have one message. Nothing is known here of a message but
the numbers of a few fields (criu's images/*.proto, which only ever get new ones); all others are
left as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nativert.errors import Code, NativertError

_MAGIC: Final = (4, 8)  # in bytes
_LENGTH: Final = struct.Struct("<I")
# images/inventory.proto, images/core.proto: the ids of who dumped, and of a task's namespaces.
_ROOT_IDS: Final = 3
_USER_NS, _CGROUP_NS, _TIME_NS = 10, 11, 12
_MADE_HERE: Final = (_USER_NS, _CGROUP_NS, _TIME_NS)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED: Final = {_FIXED64: 8, _FIXED32: 4}

Field = tuple[int, int | bytes]


def join_namespaces(directory: Path) -> None:
    """Have nothing made anew by a restore from *directory*: the instance has it all.

    criu makes what differed between it and the application when it dumped. User and cgroup
    namespace are entered by other ways, and the one for clocks is made whenever there is an
    image of them. NativertError(MIGRATE) for images that are none.
    """
    try:
        inventory = _fields(_parts(directory / "inventory.img")[1])
        ours = dict(_fields(_nested(inventory, _ROOT_IDS)))
        for path in directory.glob("ids-*.img"):
            head, message = _parts(path)
            changed = [
                (key, ours.get(key, value) if key >> 3 in _MADE_HERE else value)
                for key, value in _fields(message)
            ]
            body = b"".join(_encoded(key, value) for key, value in changed)
            path.write_bytes(head + _LENGTH.pack(len(body)) + body)
        clocks = list(directory.glob("timens-*.img"))
        if len(clocks) == 1:
            # Its number is the namespace's where the application had one of its own.
            clocks[0].rename(directory / "timens-0.img")
    except (IndexError, ValueError, struct.error, OSError) as e:
        raise NativertError(f"not images of criu: {e}", code=Code.MIGRATE) from e


def _parts(path: Path) -> tuple[bytes, bytes]:
    """Return the magic numbers and the message of an image."""
    data = path.read_bytes()
    for at in _MAGIC:
        (length,) = _LENGTH.unpack_from(data, at)
        body = data[at + _LENGTH.size :]
        if len(body) == length:
            return data[:at], body
    raise ValueError(f"{path.name}: {len(data)} bytes are not one message")


def _nested(fields: list[Field], number: int) -> bytes:
    for key, value in fields:
        if key == number << 3 | _BYTES and isinstance(value, bytes):
            return value
    raise ValueError(f"no field {number}")


def _fields(message: bytes) -> list[Field]:
    return list(_each(message))


def _each(message: bytes) -> Iterator[Field]:
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _number(message, at)
            yield key, value
            continue
        if kind == _BYTES:
            size, at = _number(message, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + size > len(message):
            raise ValueError("a field that is cut off")
        yield key, message[at : at + size]
        at += size


def _number(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return number, at


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _encoded(key: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(key) + _varint(value)
    if key & 7 == _BYTES:
        return _varint(key) + _varint(len(value)) + value
    return _varint(key) + value
