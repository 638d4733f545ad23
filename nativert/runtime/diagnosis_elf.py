"""What an ELF file says of itself: machine, loader, libraries. See elf(5).

A small reader, because only four facts are wanted, of files that may be damaged or made to
deceive: what it reads is bounded, and nothing is mapped or executed.
"""

from __future__ import annotations

import os
import platform
import struct
from typing import Final, NamedTuple

# elf.h, EM_*
_NAMES: Final = {
    2: "SPARC",
    3: "x86",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC 64",
    22: "S/390",
    40: "ARM",
    43: "SPARC V9",
    62: "x86-64",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
_OURS: Final = {"x86_64": 62, "aarch64": 183}

MAGIC: Final = b"\x7fELF"
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_MAX_SEGMENTS: Final = 256
_MAX_DYNAMIC_BYTES: Final = 64 << 10
_MAX_NAME_BYTES: Final = 4096


def here() -> str:
    """Return this node's architecture as uname(1) has it."""
    return platform.machine()


class DamagedElfError(ValueError):
    """The file begins as an ELF file and does not go on as one."""


class Machine(NamedTuple):
    """What a file is built for."""

    number: int
    bits: int

    @property
    def name(self) -> str:
        """What people call it."""
        known = _NAMES.get(self.number)
        return f"{known or f'ELF machine {self.number}'} ({self.bits} bit)"

    @property
    def native(self) -> bool:
        """Whether it is this node's; true where this node is of no known kind."""
        ours = _OURS.get(here())
        return ours is None or (self.number == ours and self.bits == 64)


class Elf(NamedTuple):
    """The facts of one file. `rpath` and `runpath` are lists of directories as they stand."""

    machine: Machine
    interpreter: str | None
    needed: tuple[str, ...]
    rpath: str
    runpath: str


class _Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    bytes: int


def machine(head: bytes) -> Machine | None:
    """Return what the first 20 bytes of a file say that it is built for; None if not an ELF."""
    if head[:4] != MAGIC or len(head) < 20:
        return None
    order = "<" if head[5] == 1 else ">"
    (number,) = struct.unpack_from(f"{order}H", head, 18)
    return Machine(number, 64 if head[4] == 2 else 32)


def read(fd: int) -> Elf | None:
    """Return the facts of an open file, None if it is no ELF file; DamagedElfError, OSError."""
    head = os.pread(fd, 64, 0)
    of = machine(head)
    if of is None:
        if head[:4] == MAGIC:
            raise DamagedElfError("the header is cut short")
        return None
    order = "<" if head[5] == 1 else ">"
    try:
        return _read(fd, head, of, order)
    except (struct.error, OverflowError) as e:
        raise DamagedElfError("it is cut short") from e


def _read(fd: int, head: bytes, of: Machine, order: str) -> Elf:
    wide = of.bits == 64
    (table,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)
    size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
    if count > _MAX_SEGMENTS or size != (56 if wide else 32):
        raise DamagedElfError("its program header is none")
    segments = [
        _segment(data, order, wide=wide) for data in _chunks(_pread(fd, table, count * size), size)
    ]
    interpreter, dynamic = None, b""
    for segment in segments:
        if segment.kind == _PT_INTERP:
            name = _pread(fd, segment.offset, min(segment.bytes, _MAX_NAME_BYTES))
            interpreter = os.fsdecode(name.split(b"\0")[0])
        elif segment.kind == _PT_DYNAMIC:
            dynamic = os.pread(fd, min(segment.bytes, _MAX_DYNAMIC_BYTES), segment.offset)
    step = 16 if wide else 8
    entries = [
        struct.unpack(f"{order}{'qQ' if wide else 'iI'}", data)
        for data in _chunks(dynamic[: len(dynamic) // step * step], step)
    ]
    strings = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    at = None if strings is None else _offset(segments, strings)

    def names(wanted: int) -> tuple[str, ...]:
        if at is None:
            return ()
        found = []
        for tag, value in entries:
            if tag == 0:
                break  # DT_NULL ends the list.
            if tag == wanted:
                text = os.pread(fd, _MAX_NAME_BYTES, at + value)
                found.append(os.fsdecode(text.split(b"\0")[0]))
        return tuple(found)

    return Elf(
        of,
        interpreter,
        names(_DT_NEEDED),
        ":".join(names(_DT_RPATH)),
        ":".join(names(_DT_RUNPATH)),
    )


def _pread(fd: int, offset: int, size: int) -> bytes:
    data = b"" if offset > 1 << 62 else os.pread(fd, size, offset)
    if len(data) < size:
        raise DamagedElfError("it is cut short")
    return data


def _chunks(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _segment(data: bytes, order: str, *, wide: bool) -> _Segment:
    if wide:
        kind, _, offset, address, _, size = struct.unpack_from(f"{order}IIQQQQ", data)
    else:
        kind, offset, address, _, size = struct.unpack_from(f"{order}IIIII", data)
    return _Segment(kind, offset, address, size)


def _offset(segments: list[_Segment], address: int) -> int | None:
    # DT_STRTAB is an address of the loaded image; where that is in the file, PT_LOAD tells.
    for segment in segments:
        inside = address - segment.address
        if segment.kind == _PT_LOAD and 0 <= inside < segment.bytes:
            return segment.offset + inside
    return None
