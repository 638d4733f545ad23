"""Work in order for each instance, and none waits for another's."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from nativert.errors import Code, NativertError

Job = Callable[[], None]
_MOST_WAITING: Final = 64
_MOST_LANES: Final = 1024


class Lanes:
    """One thread for each key that has work, for as long as it has."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[Job]] = {}
        self._closed = False

    def submit(self, key: str, job: Job) -> None:
        """Have *job* done after those of the same key; NativertError where too many wait.

        A job raises nothing.
        """
        with self._changed:
            if self._closed:
                raise NativertError(f"{key}: the plugin stops", code=Code.NO_AGENT)
            jobs = self._waiting.get(key)
            if jobs is None:
                if len(self._waiting) >= _MOST_LANES:
                    raise NativertError(
                        f"{key}: {_MOST_LANES} instances are worked on", code=Code.BUSY
                    )
                self._begin(key, job)
            elif len(jobs) >= _MOST_WAITING:
                raise NativertError(f"{key}: {_MOST_WAITING} requests wait", code=Code.BUSY)
            else:
                jobs.append(job)

    def _begin(self, key: str, job: Job) -> None:
        self._waiting[key] = deque([job])
        thread = threading.Thread(target=self._work, args=(key,), daemon=True)
        thread.name = f"lane {key}"
        try:
            thread.start()
        except RuntimeError as e:
            del self._waiting[key]
            raise NativertError(f"{key}: no thread can be made: {e}", code=Code.BUSY) from e

    def _work(self, key: str) -> None:
        while True:
            with self._changed:
                jobs = self._waiting[key]
                if not jobs:
                    # Under the lock: nobody can add to a lane whose thread has left.
                    del self._waiting[key]
                    self._changed.notify_all()
                    return
                job = jobs.popleft()
            job()

    def close(self, timeout_s: float) -> bool:
        """Take no more, drop what has not begun, wait for the rest; False after *timeout_s*."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
            for jobs in self._waiting.values():
                jobs.clear()
            while self._waiting:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    return False
        return True
