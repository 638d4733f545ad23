"""The records of a plugin's instances on the connector: one thread writes them, in order.

A failure is shown as status ERROR for a while, and then the true state again without the error
(a client that looks now and then must be able to see it); the next request ends that at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from nativert.errors import NativertError, UnknownInstanceError
from nativert.fdu.states import State
from nativert.plugin.connector import Connector

HOLD_S: Final = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    kind: Literal["status", "error", "look", "go on"]
    fdu: str
    instance: str
    status: str = ""
    code: int = 0
    message: str = ""


@dataclass(slots=True)
class _Held:
    fdu: str
    until: float
    status: str = ""


class Publisher:
    """`truth` returns an instance's record; UnknownInstanceError where there is none.

    `callable_` is told (fdu, instance, whether it can be called) before the record says so.
    """

    def __init__(
        self,
        connector: Connector,
        path: Callable[[str, str], str],
        truth: Callable[[str], dict[str, Any]],
        callable_: Callable[[str, str, bool], None],
        *,
        hold_s: float = HOLD_S,
    ) -> None:
        self._connector = connector
        self._path = path
        self._truth = truth
        self._callable = callable_
        self._hold_s = hold_s
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._held: dict[str, _Held] = {}
        self._requested: dict[str, dict[str, Any]] = {}
        self._published: dict[str, tuple[str, bytes]] = {}
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    # -- what others ask for -----------------------------------------------------------

    def status(self, fdu: str, instance: str, status: str) -> None:
        """Publish a status, unless an error is being shown: then after it."""
        self._add(_Job("status", fdu, instance, status))

    def error(self, fdu: str, instance: str, code: int, message: str) -> None:
        """Show an error for a while."""
        self._add(_Job("error", fdu, instance, code=code, message=message))

    def look(self, fdu: str, instance: str) -> None:
        """Publish what is true of an instance now, if that is not published yet."""
        self._add(_Job("look", fdu, instance))

    def go_on(self, fdu: str, instance: str) -> None:
        """A request has come: show its error no longer."""
        self._add(_Job("go on", fdu, instance))

    def requested(self, instance: str, record: dict[str, Any]) -> None:
        """Remember what was asked for, to have a record for an error before there is one."""
        with self._changed:
            self._requested[instance] = record

    def published(self) -> dict[str, str]:
        """Return the status that each instance was last published with."""
        with self._changed:
            return {instance: status for instance, (status, _) in self._published.items()}

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until what was asked for is published; False after *timeout_s*."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._busy, timeout_s)

    def close(self) -> None:
        """Publish what waits, with errors no longer shown; safe twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _add(self, job: _Job) -> None:
        with self._changed:
            if not self._closed:
                self._jobs.append(job)
                self._changed.notify_all()

    # -- the thread --------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._do(job)
            except (NativertError, OSError) as e:
                _log.warning("instance %s: cannot publish its record: %s", job.instance, e)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> _Job | None:
        with self._changed:
            while True:
                if self._jobs:
                    self._busy = True
                    return self._jobs.popleft()
                now = time.monotonic()
                for instance, held in self._held.items():
                    if self._closed or held.until <= now:
                        self._busy = True
                        return _Job("go on", held.fdu, instance)
                if self._closed:
                    return None
                first = min((held.until for held in self._held.values()), default=None)
                self._changed.wait(None if first is None else first - now)

    def _do(self, job: _Job) -> None:
        with self._changed:
            held = self._held.get(job.instance)
        if job.kind == "error":
            until = time.monotonic() + self._hold_s
            self._put(job.fdu, job.instance, "ERROR", job.code, job.message)
            with self._changed:
                self._held[job.instance] = _Held(job.fdu, until)
        elif job.kind == "go on":
            with self._changed:
                self._held.pop(job.instance, None)
            if held is not None:
                self._show(job.fdu, job.instance, held.status)
        elif held is not None:
            held.status = job.status
        else:
            self._show(job.fdu, job.instance, job.status)

    def _show(self, fdu: str, instance: str, status: str) -> None:
        """Publish *status*, or what is true where it is empty."""
        try:
            status = status or str(self._truth(instance)["status"])
        except UnknownInstanceError:
            status = State.UNDEFINED.wire
        if status == State.UNDEFINED.wire:
            self._callable(fdu, instance, False)
            self._forget(fdu, instance)
            return
        defined = status == State.DEFINED.wire
        self._callable(fdu, instance, not defined)
        if defined and self._published.get(instance, ("", b""))[0] not in ("", status, "ERROR"):
            # An agent takes its own evals back at CLEAN only; a client waits for DEFINE.
            self._put(fdu, instance, "CLEAN")
        self._put(fdu, instance, status)

    def _put(
        self,
        fdu: str,
        instance: str,
        status: str,
        code: int | None = None,
        message: str | None = None,
    ) -> None:
        try:
            record = self._truth(instance)
        except UnknownInstanceError:
            with self._changed:
                record = self._requested.get(instance, {})
            if status != "ERROR" or not record:
                self._forget(fdu, instance)
                return
        told = {"status": status, "error_code": code, "error_msg": message}
        value = msgspec.json.encode(record | told)
        # CONFIGURE makes an agent register its evals anew each time: never without need.
        if self._published.get(instance) != (status, value):
            self._connector.put(self._path(fdu, instance), value)
            with self._changed:
                self._published[instance] = (status, value)

    def _forget(self, fdu: str, instance: str) -> None:
        self._connector.delete(self._path(fdu, instance))
        with self._changed:
            self._published.pop(instance, None)
            self._requested.pop(instance, None)
            self._held.pop(instance, None)
