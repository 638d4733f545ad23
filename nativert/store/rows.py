"""What the store answers with, and how rows become it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from typing import Any, Final, TypedDict

import msgspec

from nativert.errors import DescriptorError
from nativert.store.paths import check_uuid

COLUMNS: Final = (
    "seq",
    "uuid",
    "name",
    "fdu",
    "descriptor",
    "record",
    "limits",
    "desired",
    "boot_id",
    "id_range",
    "run_count",
    "end",
    "created_at",
    "wanted",
    "env",
    "restarts",
    "retry",
    "moving",
)
# Brackets: a name in double quotes that is no column is taken for a string.
SELECT: Final = "SELECT [" + "], [".join(COLUMNS) + "] FROM instances"  # noqa: S608
_JSON: Final = ("descriptor", "record", "limits", "end", "env", "retry", "moving")
_NUMBERS: Final = ("seq", "id_range", "run_count", "restarts")


class Interface(msgspec.Struct, frozen=True):
    """What one interface was given; the host link is ``nv<tag><link>``."""

    name: str
    address: str
    link: int


class Row(msgspec.Struct, frozen=True):
    """One instance as asked for. descriptor, record and what is None or more are JSON texts.

    `desired` is the state that it was brought to, as far as that outlives this boot; `wanted`
    what an operator last asked for, which an end by itself does not change. `env` is what the
    last start added to the environment, `retry` what becomes of the last end, `restarts` how
    often it was started again since an operator started it. `moving` is a `moves.Move` while it
    is on its way between nodes.

    `id_range` is the first of its 65,536 host ids, `created_at` seconds since the epoch,
    `boot_id` the boot of the last change. `corrupt` is empty, or says which columns cannot
    be read: such a row can still be removed, by `Store.discard`.
    """

    seq: int
    uuid: str
    name: str
    fdu: str
    descriptor: str
    record: str
    limits: str | None
    desired: str
    boot_id: str
    id_range: int
    run_count: int
    end: str | None
    created_at: float
    wanted: str = "DEFINED"
    env: str | None = None
    restarts: int = 0
    retry: str | None = None
    moving: str | None = None
    interfaces: tuple[Interface, ...] = ()
    corrupt: str = ""


class Changes(TypedDict, total=False):
    """The columns that `Store.update` takes."""

    descriptor: str
    record: str
    limits: str | None
    desired: str
    run_count: int
    end: str | None
    wanted: str
    env: str | None
    restarts: int
    retry: str | None
    moving: str | None


class Event(msgspec.Struct, frozen=True):
    """Something that happened to an instance; `time` is seconds since the epoch."""

    seq: int
    time: float
    instance: str
    name: str
    kind: str
    json: str


def row(values: Sequence[Any], interfaces: Iterable[tuple[str, int, int]]) -> Row:
    """Return the row of *values* in the order of COLUMNS, with what is wrong with it.

    *interfaces* are (name, address, link number), in the order of the descriptor.
    """
    fields = dict(zip(COLUMNS, values, strict=True))
    corrupt = [column for column in COLUMNS if not _sound(column, fields[column])]
    for column in corrupt:
        fields[column] = _harmless(column, fields[column])
    given: list[Interface] = []
    try:
        for name, address, link in interfaces:
            given.append(Interface(name, str(IPv4Address(address)), link))
    except ValueError:
        corrupt.append("interfaces")
    return Row(**fields, interfaces=tuple(given), corrupt=", ".join(corrupt))


def _harmless(column: str, value: object) -> object:
    """Return something of the right type for *value*, which can be shown."""
    if column in _NUMBERS:
        return 0
    if column == "created_at":
        return 0.0
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _sound(column: str, value: object) -> bool:
    """Tell whether *value* can be what was written; SQLite does not check what it reads."""
    if column in _NUMBERS:
        return isinstance(value, int)
    if column == "created_at":
        return isinstance(value, float)
    if value is None:
        return column in ("limits", "end", "env", "retry", "moving")
    if not isinstance(value, str):
        return False
    try:
        data = value.encode()
        if column in _JSON:
            msgspec.json.decode(data)
        elif column in ("desired", "wanted"):
            return value.isascii() and value.isupper()
        elif column == "uuid":
            check_uuid(value)  # it becomes part of paths
    except (UnicodeError, msgspec.DecodeError, RecursionError, DescriptorError):
        return False
    return True
