"""What must run before what: the order of depends_on, and its refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nativert.errors import Code, NativertError
from nativert.runtime.context import descriptor_of
from nativert.store.durable import Row


def named(rows: Sequence[Row], row: Row) -> dict[str, Row | None]:
    """Return the instance that each entry of *row*'s depends_on names, None where none does.

    An entry is a name, the UUID of an instance, or the id or UUID of its FDU; in this order.
    """
    found: dict[str, Row | None] = {}
    for entry in descriptor_of(row.descriptor, row.name).depends_on:
        found[entry] = next(
            (
                other
                for matches in (_is_name, _is_fdu)
                for other in rows
                if not other.corrupt and other.uuid != row.uuid and matches(other, entry)
            ),
            None,
        )
    return found


def _is_name(row: Row, entry: str) -> bool:
    return entry == row.name or entry.lower() == row.uuid


def _is_fdu(row: Row, entry: str) -> bool:
    return entry.lower() == row.fdu or entry == descriptor_of(row.descriptor, row.name).id


def needed(rows: Sequence[Row], row: Row) -> list[Row]:
    """Return what *row* depends on, directly or not, in the order of starting.

    Raises NativertError(REQUIREMENTS) for a cycle and for one that is not there.
    """
    done: dict[str, Row] = {}
    _visit(rows, row, [], done)
    del done[row.uuid]
    return list(done.values())


def _visit(rows: Sequence[Row], row: Row, path: list[Row], done: dict[str, Row]) -> None:
    if row.uuid in done:
        return
    if row in path:
        circle = " -> ".join(each.name for each in (*path[path.index(row) :], row))
        raise NativertError(
            f"{path[0].name}: cannot start: its dependencies are a circle: {circle}",
            code=Code.REQUIREMENTS,
        )
    for entry, other in named(rows, row).items():
        if other is None:
            raise NativertError(
                f"{row.name}: cannot start: depends_on names {entry}, and no instance is called so",
                code=Code.REQUIREMENTS,
                hint="define it first",
            )
        _visit(rows, other, [*path, row], done)
    done[row.uuid] = row


def levels(rows: Sequence[Row]) -> list[list[Row]]:
    """Return all instances in groups: each depends on those of earlier groups only.

    What is in a circle, or names what is not there, is taken as if it named nothing more.
    """
    depth: dict[str, int] = {}
    before: Mapping[str, list[Row]] = {
        row.uuid: [other for other in named(rows, row).values() if other is not None]
        for row in rows
        if not row.corrupt
    }

    def of(uuid: str, path: tuple[str, ...]) -> int:
        if uuid not in depth:
            deeper = [
                of(other.uuid, (*path, uuid)) + 1
                for other in before[uuid]
                if other.uuid not in (*path, uuid)
            ]
            depth[uuid] = max(deeper, default=0)
        return depth[uuid]

    found: list[list[Row]] = []
    for row in rows:
        if row.corrupt:
            continue
        level = of(row.uuid, ())
        while len(found) <= level:
            found.append([])
        found[level].append(row)
    return found
