"""The events of the node: a bounded table, and what waits to be written into it.

An event that belongs to a commit of the operation goes with it. The others wait in an
`Outbox` for a moment, so that pause and resume need no disk; every later commit of the same
process takes them along first, which keeps their order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nativert.errors import NativertError
from nativert.store.boot import boot_id
from nativert.store.rows import Event

if TYPE_CHECKING:
    import sqlite3

MAX_EVENTS: Final = 10_000
# What is noted within this time shares one commit.
_DELAY_S: Final = 0.05
_RETRY_S: Final = 1.0


class Ended(NamedTuple):
    """What an end changes in its instance, unless somebody has noted it before.

    `run` has ended as `end` says, JSON of a verdict; `was` is what was desired while it ran.
    """

    run: int
    end: str
    was: str


class Pending(NamedTuple):
    """An event before it has a number; `told` is the state that it tells, where it tells one."""

    time: float
    instance: str
    kind: str
    json: str
    told: str | None
    ended: Ended | None = None


def append(connection: sqlite3.Connection, pending: Iterable[Pending], *, keep: int) -> int:
    """Add events within the caller's transaction, keep the newest *keep*; return the last number.

    The name is the instance's at this moment: events of one that is forgotten are still read.
    """
    last = 0
    for event in pending:
        if event.ended is not None and not _end(connection, event, event.ended):
            continue
        added: Any = connection.execute(
            "INSERT INTO events (time, instance, name, kind, json)"
            " VALUES (?, ?, coalesce((SELECT name FROM instances WHERE uuid = ?), ''), ?, ?)",
            (event.time, event.instance, event.instance, event.kind, event.json),
        )
        last = int(added.lastrowid)
        if event.told is not None:
            connection.execute(
                "UPDATE instances SET told = ? WHERE uuid = ?", (event.told, event.instance)
            )
    if last > keep:
        connection.execute("DELETE FROM events WHERE seq <= ?", (last - keep,))
    return last


def _end(connection: sqlite3.Connection, event: Pending, ended: Ended) -> bool:
    changed = connection.execute(
        "UPDATE instances SET desired = ?, end = ?, boot_id = ?"
        " WHERE uuid = ? AND run_count = ? AND desired = ?",
        (event.told, ended.end, boot_id(), event.instance, ended.run, ended.was),
    )
    return bool(changed.rowcount)


def select(connection: sqlite3.Connection, after: int, limit: int) -> list[Event]:
    """Return at most *limit* events with numbers above *after*, oldest first."""
    found = connection.execute(
        "SELECT seq, time, instance, name, kind, json FROM events WHERE seq > ?"
        " ORDER BY seq LIMIT ?",
        (after, limit),
    )
    return [Event(*values) for values in found]


def latest(connection: sqlite3.Connection) -> int:
    """Return the number of the newest event that ever was, 0 if there was none."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return 0 if found is None else int(found[0])


class Outbox:
    """Events that wait for a thread that commits them."""

    def __init__(self) -> None:
        self._waiting: deque[Pending] = deque()
        # Held while the thread may sleep; released to wake it. By one call, where an Event
        # takes eight statements that have not been run for a while.
        self._asleep = threading.Lock()
        self._asleep.acquire()
        self._closed = threading.Event()
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._lost = 0
        self.ends = False

    def put(self, event: Pending) -> None:
        """Keep an event until it is written. While the disk takes none, the oldest go.

        `ends` says whether there may be one that changes its instance too.
        """
        if len(self._waiting) >= MAX_EVENTS:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(event)
        # After it: who takes in between has taken it, or leaves the word.
        if event.ended is not None:
            self.ends = True

    def wake(self, write: Callable[[], None]) -> None:
        """Have what waits written soon, by *write*."""
        if not self._waiting:
            return
        if self._thread is None:
            self._begin(write)
        self._rouse()

    def _begin(self, write: Callable[[], None]) -> None:
        with self._mutex:
            if self._thread is None and not self._closed.is_set():
                # The thread's alone: a store that is let go must not wait for the collector.
                self._thread = threading.Thread(
                    target=self._run, args=(write,), name="events", daemon=True
                )
                self._thread.start()

    def take(self) -> list[Pending]:
        """Return what waits, in order; the caller writes it or gives it back."""
        taken: list[Pending] = []
        self.ends = False
        if self._lost:
            lost, self._lost = self._lost, 0
            taken.append(Pending(time.time(), "", "events-lost", f'{{"count":{lost}}}', None))
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken

    def empty(self) -> bool:
        """Tell whether nothing waits."""
        return not self._waiting and not self._lost

    def give_back(self, taken: list[Pending]) -> None:
        """Put back what could not be written."""
        self._waiting.extendleft(reversed(taken))
        if any(event.ended is not None for event in taken):
            self.ends = True

    def close(self) -> None:
        """End the thread; what still waits is left to the caller."""
        self._closed.set()
        self._rouse()
        with self._mutex:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self, write: Callable[[], None]) -> None:
        while not self._closed.is_set():
            self._asleep.acquire()
            self._closed.wait(_DELAY_S)
            # Whoever wakes it from here on has given what is not looked at yet.
            self._asleep.acquire(blocking=False)
            try:
                write()
            except NativertError:
                # A full disk: nothing else waits for this, and it may be freed.
                self._rouse()
                self._closed.wait(_RETRY_S)

    def _rouse(self) -> None:
        try:
            self._asleep.release()
        except RuntimeError:
            pass  # It is awake, or about to be.
