"""What Zenoh's threads bring, taken on by threads of ours; and what is taken back when closed."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import zenoh

from nativert.plugin.connector import Sample

_log = logging.getLogger(__name__)


class Listener:
    """What comes for one listener, and a thread that brings it there."""

    def __init__(self, selector: str, listener: Callable[[Sample], None]) -> None:
        self._listener = listener
        self._samples: queue.SimpleQueue[Sample | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._done = 0
        self.came = 0
        name = f"listener {selector}"
        threading.Thread(target=self._deliver, name=name, daemon=True).start()

    def put(self, sample: Sample) -> None:
        """Have *sample* taken soon."""
        with self._changed:
            self.came += 1
        self._samples.put(sample)

    def wait(self, count: int, deadline: float) -> None:
        """Wait until *count* samples have been taken, or the deadline."""
        if self._done < count:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._done >= count, max(0.0, deadline - time.monotonic())
                )

    def close(self) -> None:
        """End the thread when it has taken what came."""
        self._samples.put(None)

    def _deliver(self) -> None:
        while (sample := self._samples.get()) is not None:
            try:
                self._listener(sample)
            except Exception:  # noqa: BLE001 (told in the log)
                _log.exception("%s: a listener has failed", sample.path)
            with self._changed:
                self._done += 1
                self._changed.notify_all()


class Question(NamedTuple):
    """A question, and how many samples ordered listeners must have taken before its answer."""

    query: zenoh.Query
    after: list[tuple[Listener, int]]


class Declared:
    """Something of Zenoh's that is taken back when closed, and what is to be done then."""

    def __init__(self, declared: Any, then: Callable[[], None]) -> None:
        self._declared = declared
        self._then = then
        self._closed = False

    def close(self) -> None:
        """Take it back; safe twice."""
        if not self._closed:
            self._closed = True
            if self._declared is not None:
                # The session may be closed by now, and everything with it.
                with contextlib.suppress(zenoh.ZError):
                    self._declared.undeclare()
            self._then()
