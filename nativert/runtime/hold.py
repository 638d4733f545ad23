"""One instance in the hand of one operation, and what this process keeps of it for the next.

Every operation holds the instance's lock and begins by looking what has happened meanwhile.
Who held the lock last stands in its file: while that is this process, nobody else has changed
anything, and what its last operation left is still so, but for what happens by itself: of
that init tells on the connection which is kept, and which ends with it.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Final, Self

from nativert.errors import UnknownInstanceError
from nativert.runtime.context import Context
from nativert.runtime.observe import Observed, unchanged
from nativert.store.durable import Row
from nativert.store.locks import InstanceLock

_KEPT: Final = 256


class Hold:
    """An instance whose lock is held; a context manager, which gives it back.

    `seen` is what the last operation left if nothing has happened since, else None. Whoever
    sets it to what the instance now is lets the next operation begin there.
    """

    __slots__ = ("_holds", "lock", "row", "seen")

    def __init__(self, holds: Holds, lock: InstanceLock, row: Row, seen: Observed | None) -> None:
        self._holds = holds
        self.lock = lock
        self.row = row
        self.seen = seen

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holds.give_back(self)


class Holds:
    """What one node's process keeps of the instances that it has worked on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._token = os.urandom(16)
        self._mutex = threading.Lock()
        self._kept: dict[str, Hold] = {}

    def take(self, ref: str) -> Hold:
        """Lock the instance that *ref* names; UnknownInstanceError, NativertError(TIMEOUT)."""
        hold = self._kept.pop(ref, None)
        if hold is None:
            row = self._context.store.find(ref)
            hold = self._kept.pop(row.uuid, None)
            if hold is None:
                return self._locked(row)
        if not hold.lock.retake():
            return self._locked(hold.row)
        try:
            # Nobody has held the lock since, and without it nobody changes the row.
            if hold.seen is not None:
                hold.row = hold.seen.row
                hold.seen = unchanged(self._context, hold.seen)
        except BaseException:
            hold.lock.release()
            raise
        return hold

    def _locked(self, row: Row) -> Hold:
        lock = self._context.lock(row.uuid)
        lock.acquire()
        try:
            # Found again: it may have been undefined while we waited.
            return Hold(self, lock, self._context.store.get(row.uuid), None)
        except UnknownInstanceError:
            lock.forget()
            raise
        except BaseException:
            lock.release()
            raise

    def give_back(self, hold: Hold) -> None:
        """Unlock; the hold is kept if its operation said what it has left."""
        if hold.seen is None or not hold.lock.held:
            hold.lock.release()
            return
        uuid = hold.row.uuid
        with self._mutex:
            before = self._kept.pop(uuid, None)
            try:
                if len(self._kept) < _KEPT:
                    hold.lock.keep(self._token)
                    self._kept[uuid] = hold
                else:
                    hold.lock.release()
            except OSError:
                # A full disk: the next operation looks again, as another process's would.
                hold.lock.release()
        if before is not None:
            before.lock.release()

    def close(self) -> None:
        """Close what is kept."""
        while self._kept:
            self._kept.popitem()[1].lock.release()
