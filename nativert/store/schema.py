"""The tables of nativert.db, and the way from each older version to the present one."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import sqlite3

# Entry n leads from version n to n + 1. What has been released is never edited: stores of
# that version exist. A new need is a new entry, and a saved store for the test.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """
        CREATE TABLE instances (
            seq        INTEGER PRIMARY KEY AUTOINCREMENT,
            uuid       TEXT NOT NULL UNIQUE,
            name       TEXT NOT NULL UNIQUE,
            fdu        TEXT NOT NULL,
            descriptor TEXT NOT NULL,
            record     TEXT NOT NULL,
            limits     TEXT,
            desired    TEXT NOT NULL,
            boot_id    TEXT NOT NULL,
            id_range   INTEGER NOT NULL UNIQUE,
            run_count  INTEGER NOT NULL DEFAULT 0,
            "end"      TEXT,
            created_at REAL NOT NULL
        )
        """,
        # A row stays after its release: `released` orders the addresses for reuse.
        """
        CREATE TABLE addresses (
            address   INTEGER PRIMARY KEY,
            instance  TEXT REFERENCES instances (uuid),
            interface TEXT,
            released  INTEGER
        )
        """,
        "CREATE INDEX addresses_by_instance ON addresses (instance)",
        """
        CREATE TABLE links (
            number    INTEGER PRIMARY KEY,
            instance  TEXT NOT NULL REFERENCES instances (uuid) ON DELETE CASCADE,
            interface TEXT NOT NULL,
            position  INTEGER NOT NULL,
            UNIQUE (instance, interface)
        )
        """,
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    ),
    (
        """
        CREATE TABLE events (
            seq      INTEGER PRIMARY KEY AUTOINCREMENT,
            time     REAL NOT NULL,
            instance TEXT NOT NULL,
            kind     TEXT NOT NULL,
            json     TEXT NOT NULL
        )
        """,
    ),
    (
        "ALTER TABLE events ADD COLUMN name TEXT NOT NULL DEFAULT ''",
        # The state that the last event told: what it lacks is made up for.
        "ALTER TABLE instances ADD COLUMN told TEXT",
        "ALTER TABLE instances ADD COLUMN wanted TEXT NOT NULL DEFAULT 'DEFINED'",
        "UPDATE instances SET wanted = desired, told = desired",
        "ALTER TABLE instances ADD COLUMN env TEXT",
        "ALTER TABLE instances ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE instances ADD COLUMN retry TEXT",
    ),
    (
        "ALTER TABLE instances ADD COLUMN moving TEXT",
        # Stays when the instance is gone: what is over must not begin again.
        """
        CREATE TABLE moves (
            instance   TEXT PRIMARY KEY,
            epoch      INTEGER NOT NULL,
            outcome    TEXT NOT NULL,
            peer       TEXT NOT NULL,
            changed_at REAL NOT NULL
        )
        """,
    ),
    ("CREATE TABLE catalog (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, value TEXT)",),
    # The instance that has taken an address along to another node.
    ("ALTER TABLE addresses ADD COLUMN lent TEXT",),
)

VERSION: Final = len(MIGRATIONS)


# Of each statement as SQLite keeps it; a test has them made anew.
MADE: Final = frozenset(
    (
        0x03E17AE8,
        0x3FAC637A,
        0x4EBD151A,
        0x4F6BB5E9,
        0x6D5DB21D,
        0x7D20CAF1,
        0x97316062,
        0xD4D21288,
        0xD62985D2,
    )
)


def described(connection: sqlite3.Connection) -> frozenset[int]:
    """Return a sum of each statement that tables and indexes were made by."""
    # By its type too: a flipped bit makes a blob of a text, or a number.
    found = connection.execute("SELECT sql FROM sqlite_master WHERE typeof(sql) = 'text'")
    # How another SQLite lays out what ALTER adds makes no difference.
    plain = (" ".join(sql.split()).encode(errors="surrogateescape") for (sql,) in found)
    return frozenset(map(zlib.crc32, plain))


def sound(connection: sqlite3.Connection) -> bool:
    """Tell whether the tables are those of VERSION; what an operator has added is no damage.

    SQLite believes its schema: with a flipped bit in it a column of sound rows reads as another.
    """
    return described(connection) >= MADE


def version(connection: sqlite3.Connection) -> int:
    """Return the schema version that the store says it has."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection, *, to: int = VERSION) -> None:
    """Bring the store to version *to* in one transaction: all steps or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Read again inside the transaction: another process may have been faster.
        for statements in MIGRATIONS[version(connection) : to]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {to:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
