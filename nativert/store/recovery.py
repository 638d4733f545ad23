"""A damaged nativert.db: put aside, and a new one made of what can still be read."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nativert.store import database, files, rows
from nativert.store.locks import Lock
from nativert.store.paths import Paths

if TYPE_CHECKING:
    import sqlite3

_TABLES: Final = {
    "instances": ("seq", rows.COLUMNS),
    "addresses": ("address", ("address", "instance", "interface", "released", "lent")),
    "links": ("number", ("number", "instance", "interface", "position")),
    "counters": ("name", ("name", "value")),
    "moves": ("instance", ("instance", "epoch", "outcome", "peer", "changed_at")),
    "catalog": ("path", ("path", "stamp", "value")),
    "events": ("seq", ("seq", "time", "instance", "name", "kind", "json")),
}
# What stands for the columns that a store of an older version does not have.
_LATER: Final = {
    "wanted": "[desired]",
    "env": "NULL",
    "restarts": "0",
    "retry": "NULL",
    "moving": "NULL",
    "lent": "NULL",
}


@dataclass(frozen=True, slots=True)
class Recovered:
    """Where the damaged file is now, and the UUIDs of the instances in the new one."""

    aside: Path
    instances: tuple[str, ...]


def recover(paths: Paths) -> Recovered:
    """Put the store aside as nativert.db.corrupt-N, and make a new one of what it still tells.

    Only on the operator's word: what cannot be read any more is forgotten, while its
    processes may run. No command may have the store open.
    """
    path = paths.database
    number = 1
    while os.path.lexists(aside := Path(f"{path}.corrupt-{number}")):
        number += 1
    with Lock(paths.run / "store.lock", what=str(path), timeout_s=database.BUSY_TIMEOUT_S):
        for side in ("", *database.SIDES):
            try:
                os.rename(f"{path}{side}", f"{aside}{side}")
            except FileNotFoundError:
                pass
        files.sync_directory(path.parent)
    new = database.connect(path, lock=paths.run / "store.lock")
    try:
        with database.TypedErrors(path):
            return Recovered(aside, _salvage(aside, new))
    finally:
        new.close()


def _salvage(aside: Path, new: sqlite3.Connection) -> tuple[str, ...]:
    import sqlite3

    try:
        old = database.open_existing(aside)
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return ()
    with contextlib.closing(old):
        found = {table: _readable(old, table) for table in _TABLES}
    found["instances"] = [v for v in found["instances"] if not rows.row(v, ()).corrupt]
    new.execute("PRAGMA foreign_keys = OFF")
    new.execute("BEGIN IMMEDIATE")
    for table, (_, columns) in _TABLES.items():
        for values in found[table]:
            marks = ", ".join("?" * len(values))
            into = ", ".join(f"[{column}]" for column in columns)
            new.execute(
                f"INSERT OR IGNORE INTO {table} ({into}) VALUES ({marks})",  # noqa: S608
                values,
            )
    for table in ("addresses", "links"):
        new.execute(
            f"DELETE FROM {table} WHERE instance NOT IN (SELECT uuid FROM instances)"  # noqa: S608
        )
    new.execute("COMMIT")
    return tuple(uuid for (uuid,) in new.execute("SELECT uuid FROM instances ORDER BY seq"))


def _readable(old: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    """Return the rows before the first unreadable page, and those after the last one."""
    import sqlite3

    key, columns = _TABLES[table]
    try:
        present = {row[1] for row in old.execute(f"PRAGMA table_info({table})")}
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return []
    wanted = ", ".join(
        f"[{column}]" if column in present else _LATER.get(column, "''") for column in columns
    )
    found: dict[Any, tuple[Any, ...]] = {}
    for direction in ("ASC", "DESC"):
        try:
            for values in old.execute(
                f"SELECT {wanted} FROM {table} ORDER BY {key} {direction}"  # noqa: S608
            ):
                found[values[0]] = values
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            continue  # the other direction may reach the rows behind the damage
        break
    return list(found.values())
