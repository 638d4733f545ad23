"""Opening nativert.db, and its errors in nativert's words."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from nativert.errors import Code, NativertError
from nativert.store import files, reserve, schema
from nativert.store.locks import Lock

if TYPE_CHECKING:
    import sqlite3

BUSY_TIMEOUT_S: Final = 10.0
SIDES: Final = ("-wal", "-shm")


class FullDiskError(NativertError):
    """SQLite found no space; the old record is intact."""

    code = Code.STORE


def connect(path: Path, *, lock: Path) -> sqlite3.Connection:
    """Open the store, made or brought to the present schema under *lock* where needed.

    Raises NativertError(STORE) for a damaged store and for one of a newer nativert.
    """
    try:
        connection = _connect(path, lock)
    except FullDiskError:
        # Without the store nothing could be stopped or removed, which is what frees space.
        if not reserve.give_up(path):
            raise
        return _connect(path, lock)
    reserve.keep(path)
    return connection


def _connect(path: Path, lock: Path) -> sqlite3.Connection:
    with TypedErrors(path):
        if not os.path.lexists(path):
            with Lock(lock, what=str(path), timeout_s=BUSY_TIMEOUT_S):
                if not os.path.lexists(path):
                    _create(path)
        connection = open_existing(path)
        try:
            _check_version(connection, path, lock)
        except BaseException:
            connection.close()
            raise
        return connection


def _check_version(connection: sqlite3.Connection, path: Path, lock: Path) -> None:
    found = schema.version(connection)
    if found > schema.VERSION:
        raise NativertError(
            f"{path} has schema {found}, this nativert knows {schema.VERSION}",
            code=Code.STORE,
            hint="use the newer nativert that wrote it",
        )
    if found == 0:
        # A store appears by rename with its tables in it, so an empty one was cut off.
        raise damaged(path, "it has no tables")
    if found < schema.VERSION:
        with Lock(lock, what=str(path), timeout_s=BUSY_TIMEOUT_S):
            schema.migrate(connection)
    if not schema.sound(connection):
        raise damaged(path, "its tables are not those that were made")


def _create(path: Path) -> None:
    temporary = Path(f"{path}.new")
    for leftover in (temporary, *(Path(f"{temporary}{side}") for side in SIDES)):
        leftover.unlink(missing_ok=True)
    # Made before SQLite does it: -wal and -shm take over the mode of this file.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    connection = open_existing(temporary)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        schema.migrate(connection)
    finally:
        connection.close()  # the last close moves the log into the file
    for side in SIDES:
        # Of a store that was moved aside: SQLite would take it for this one's.
        Path(f"{path}{side}").unlink(missing_ok=True)
    os.rename(temporary, path)
    files.sync_directory(path.parent)


def open_existing(path: Path) -> sqlite3.Connection:
    """Open the SQLite file *path* as it is; it must be there."""
    import sqlite3

    # mode=rw: SQLite must never make an empty store in the place of a lost one.
    connection = sqlite3.connect(
        f"file://{_quoted(path)}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    # A flipped bit may break UTF-8; one bad row must not make the others unreadable.
    connection.text_factory = _text
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        # It is in a circle with its statements: left alone it stays open for a while.
        connection.close()
        raise
    return connection


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _quoted(path: Path) -> str:
    # By hand: urllib.parse costs every command two milliseconds.
    return os.fspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def damaged(path: Path, reason: str) -> NativertError:
    """Return the error for a store that cannot be read."""
    return NativertError(
        f"{path} is damaged: {reason}",
        code=Code.STORE,
        hint=f"restore it from a backup, or move {path}* aside to begin with an empty one",
    )


class TypedErrors:
    """Turns what SQLite says of the store *path* into a NativertError; see sqlite.org/rescode.html.

    A context manager, to be entered as often as wanted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(e, Exception):
            self._translate(e)

    def _translate(self, e: Exception) -> None:
        import sqlite3

        path = self._path
        if isinstance(e, UnicodeDecodeError):
            # Python could not tell what SQLite says of it. Values are decoded as they are: _text.
            raise damaged(path, "the description of its tables is no text") from e
        if not isinstance(e, sqlite3.DatabaseError) or isinstance(e, sqlite3.ProgrammingError):
            return
        extended = getattr(e, "sqlite_errorcode", 0)
        primary = extended & 0xFF
        # Opening needs 32 KiB for the -shm file, whose failure is not counted as FULL.
        if primary == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:
            raise FullDiskError(
                f"{path}: no space left; nothing was changed",
                hint=f"free space in the file system of {path.parent}",
            ) from e
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise NativertError(
                f"{path}: another command writes for more than {BUSY_TIMEOUT_S:g} s",
                code=Code.TIMEOUT,
                hint="try again",
            ) from e
        if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            raise NativertError(
                f"{path}: {e}", code=Code.PERMISSION, hint="run as the user who owns it"
            ) from e
        if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            raise NativertError(
                f"{path}: {e}",
                code=Code.STORE,
                hint=f"see the kernel's log for errors of the disk under {path.parent}",
            ) from e
        raise damaged(path, str(e)) from e
