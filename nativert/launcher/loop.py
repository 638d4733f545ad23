"""The poll loop of launcher and init: a handler for each descriptor, one thread."""

from __future__ import annotations

import os
import select
from collections.abc import Callable


class Loop:
    """Descriptors and what is called when they can be read."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call *handler* whenever *fd* can be read or its peer is gone."""
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget *fd*, before it is closed; safe twice."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def turn(self, timeout_ms: float | None) -> bool:
        """Wait for at most *timeout_ms* and call what is due; False if nothing was."""
        events = self._poll.poll(timeout_ms)
        for fd, _ in events:
            # A handler may have forgotten a descriptor whose event is in the list.
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
        return bool(events)


def drain(signals: int) -> None:
    """Take note of every pending signal of a signalfd(2): what they say is asked for anew."""
    try:
        while os.read(signals, 4096):
            pass
    except BlockingIOError:
        pass
