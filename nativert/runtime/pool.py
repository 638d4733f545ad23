"""Threads for what blocks: a bounded number, made when needed, gone when idle.

Unlike concurrent.futures' they are daemons: an operation that takes an hour must not keep the
process from ending, since the next look at the instance settles what stands half-way.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from nativert.errors import Code, NativertError

_T = TypeVar("_T")
_IDLE_S = 20.0


class Pool:
    """At most *size* threads; what more is asked for waits in order."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._jobs: deque[tuple[Future[Any], Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._threads = 0
        self._free = 0
        self._closed = False

    @property
    def threads(self) -> int:
        """How many there are now."""
        return self._threads

    @property
    def waiting(self) -> int:
        """How many jobs no thread has taken yet."""
        return len(self._jobs)

    def submit(self, job: Callable[[], _T]) -> Future[_T]:
        """Have a thread call *job*; after `close` it is cancelled.

        NativertError (BUSY) where there is no thread, and none can be made.
        """
        future: Future[_T] = Future()

        def carry_out() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(job())
            except BaseException as e:  # noqa: BLE001 (raised again where the result is read)
                future.set_exception(e)

        with self._changed:
            if self._closed:
                future.cancel()
                return future
            self._jobs.append((future, carry_out))
            if self._free < len(self._jobs) and self._threads < self._size:
                self._begin()
            else:
                self._changed.notify()
        return future

    async def call(self, job: Callable[[], _T]) -> _T:
        """Have a thread call *job* and wait for what comes of it.

        A caller that is cancelled leaves; the job goes on, if it has begun.
        """
        import asyncio

        return await asyncio.wrap_future(self.submit(job))

    def close(self, timeout_s: float) -> bool:
        """Begin nothing more, and wait for what has begun; False if some of it goes on."""
        with self._changed:
            self._closed = True
            while self._jobs:
                self._jobs.popleft()[0].cancel()
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._threads, timeout_s)

    def _begin(self) -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError as e:
            # EAGAIN of clone(2): memory, or a limit of tasks. Those that are there go on.
            if not self._threads:
                self._jobs.pop()
                raise NativertError(
                    f"no thread for {self._name} can be made: {e}",
                    code=Code.BUSY,
                    hint="try again in a moment",
                ) from e
        else:
            self._threads += 1

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._free += 1
            self._changed.wait_for(lambda: self._jobs or self._closed, timeout=_IDLE_S)
            self._free -= 1
            if self._jobs:
                return self._jobs.popleft()[1]
            self._threads -= 1
            if self._closed:
                self._changed.notify_all()
            return None
