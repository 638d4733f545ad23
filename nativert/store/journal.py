"""The file of the store, one transaction after the other, and the events in it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self, TypeVar

from nativert.errors import NativertError
from nativert.store import database, events, reserve
from nativert.store.disk import Disk, Saving
from nativert.store.events import MAX_EVENTS, Outbox, Pending
from nativert.store.paths import Paths
from nativert.store.rows import Event

if TYPE_CHECKING:
    import sqlite3

_T = TypeVar("_T")
# How soon a wait sees what another process has written.
_LOOK_S: Final = 0.2
# After so many commits of one process the log gets the length that it will have: 1,000 pages with
# their headers, after which SQLite begins at its front again (sqlite.org/wal.html).
_MANY: Final = 16
_LOG_BYTES: Final = 1024 * (4096 + 24)
_ENOUGH: Final = 256 << 20


class Journal:
    """One connection for all threads of a process; each method is one transaction."""

    def __init__(self, paths: Paths) -> None:
        self._path = paths.database
        self._typed_errors = database.TypedErrors(self._path)
        self._mutex = threading.RLock()
        self._outbox = Outbox()
        self._committed = threading.Condition()
        self._commits = 0
        self._connection = database.connect(self._path, lock=paths.run / "store.lock")
        self._full = True
        self._has_room = False
        self._disk = Disk(self._path.with_name(f"{self._path.name}-wal"))

    def close(self) -> None:
        """Write the events that wait and close the file; safe to call again."""
        self._outbox.close()
        try:
            self.flush()
        except NativertError:
            pass  # No room for them: the next agent's look says what they would have said.
        self._disk.close()
        with self._mutex, self._typed_errors:
            self._connection.close()

    def save(self) -> Saving:
        """Have the disk take what was committed without waiting for it; see `_transaction`."""
        return self._disk.save()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append_event(self, instance: str, kind: str, json: str) -> int:
        """Add one event in a commit of its own; return its number."""
        with self._transaction() as connection:
            return self._append(connection, instance, (kind, json))

    def note(
        self, instance: str, kind: str, json: str, *, told: str | None = None, wake: bool = True
    ) -> None:
        """Add one event soon, in order, without waiting for the disk.

        Without *wake* it waits for `wake`: a thread that begins to run is in the way of who
        woke it.
        """
        self._outbox.put(Pending(time.time(), instance, kind, json, told))
        if wake:
            self.wake()

    def wake(self) -> None:
        """Have written what `note` has left waiting."""
        self._outbox.wake(self._written)

    def events(self, after: int = 0, *, limit: int = 1000) -> list[Event]:
        """Return at most *limit* events with numbers above *after*, oldest first."""
        with self._reading() as connection:
            return events.select(connection, after, limit)

    def wait_events(self, after: int, timeout_s: float, *, limit: int = 1000) -> list[Event]:
        """Return events above *after*, as soon as there are some; none after *timeout_s*.

        Those of other processes are seen within a fifth of a second.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            commits = self._commits
            found = self.events(after, limit=limit)
            left_s = deadline - time.monotonic()
            if found or left_s <= 0:
                return found
            with self._committed:
                if self._commits == commits:
                    self._committed.wait(min(left_s, _LOOK_S))

    def latest_event(self) -> int:
        """Return the number of the newest event, 0 if there never was one."""
        with self._reading() as connection:
            return events.latest(connection)

    def told(self) -> dict[str, str | None]:
        """Return the state of each instance that its last event told."""
        with self._reading() as connection:
            return dict(connection.execute("SELECT uuid, told FROM instances").fetchall())

    def version(self) -> int:
        """Return a number that changes when another connection has committed."""
        with self._reading() as connection:
            return int(connection.execute("PRAGMA data_version").fetchone()[0])

    def flush(self) -> None:
        """Write now what `note` has left for later."""
        with self._mutex:
            if not self._outbox.empty():
                with self._transaction():
                    pass  # Every transaction takes them along.

    def _written(self) -> None:
        """Write what waits, by the thread that does so; see `_make_room`."""
        self.flush()
        if self._commits >= _MANY and not self._has_room:
            self._has_room = True
            try:
                self._make_room()
            except (NativertError, OSError):
                pass  # It only makes commits quicker.

    def _make_room(self) -> None:
        # A process that commits often: the log is reused from its front once it is so long.
        room = os.statvfs(self._path)
        if room.f_bavail * room.f_frsize < _ENOUGH:
            return
        longer = True
        while longer:
            # Nobody appends to the log while this connection is the one that may write.
            with self._transaction(wait=False):
                longer = self._disk.lengthen(_LOG_BYTES)
        self._disk.save().wait()

    def flush_ends(self) -> None:
        """Write now what waits if it changes rows; a power cut may take it back."""
        with self._mutex:
            if self._outbox.ends:
                with self._transaction(wait=False):
                    pass

    def check(self) -> list[str]:
        """Return what SQLite finds wrong with the file, for doctor; it reads all of it."""
        with self._reading() as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def _with_reserve(self, change: Callable[[], _T]) -> _T:
        try:
            return change()
        except database.FullDiskError:
            # On a full disk instances can be stopped and removed; nothing new is let in.
            if not reserve.give_up(self._path):
                raise
            return change()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, self._typed_errors:
            if self._outbox.ends:
                with suppress(NativertError):  # No room: rows are as they were, and so are facts.
                    self.flush_ends()
            yield self._connection

    @contextmanager
    def _transaction(self, *, wait: bool = True) -> Iterator[sqlite3.Connection]:
        """Begin, and commit at the end of the block.

        Without *wait* the commit is everybody's to see and survives every process, and a
        power cut only after `save` or the next commit that waits.
        """
        connection = self._connection
        with self._mutex, self._typed_errors:
            self._synchronous(full=wait)
            # IMMEDIATE: a transaction that starts by reading cannot always become a writer.
            connection.execute("BEGIN IMMEDIATE")
            waiting = self._outbox.take()
            try:
                # What was noted before comes before.
                if waiting:
                    events.append(connection, waiting, keep=MAX_EVENTS)
                    self._forget(event.instance for event in waiting if event.ended is not None)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._outbox.give_back(waiting)
                self._rolled_back()
                # A full disk or an I/O error has rolled back by itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        with self._committed:
            self._commits += 1
            self._committed.notify_all()

    def _synchronous(self, *, full: bool) -> None:
        # With a write-ahead log NORMAL is FULL without the fdatasync of each commit.
        if self._full != full:
            mode = "FULL" if full else "NORMAL"
            self._connection.execute(f"PRAGMA synchronous = {mode}")
            self._full = full

    def _forget(self, instances: Iterable[str]) -> None:
        """Forget what was kept of instances that have changed."""

    def _rolled_back(self) -> None:
        """Forget what was kept of a transaction that did not happen."""

    def _append(
        self,
        connection: sqlite3.Connection,
        instance: str,
        event: tuple[str, str] | None,
    ) -> int:
        if event is None:
            return 0
        pending = Pending(time.time(), instance, *event, None)
        return events.append(connection, [pending], keep=MAX_EVENTS)
