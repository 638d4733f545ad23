"""A request of another node under way here: what comes of it, and what its sender gives to it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nativert.agent.nodes import messages
from nativert.agent.nodes.messages import Piece

# As many pieces wait here for whom they are meant.
_ROOM = 8
Reply = Callable[[bytes], None]


class Carried:
    """One request; any thread may give it up."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._break_off: Callable[[], None] | None = None
        self._changed = threading.Condition()
        self._sent = 0
        self._taken = 0
        self._pieces: deque[Piece] = deque()
        self._given = 0
        self._over = False
        self.heard = time.monotonic()
        self.dropped = False

    @contextmanager
    def broken_off_by(self, break_off: Callable[[], None]) -> Iterator[None]:
        """Have *break_off* called if it is given up meanwhile; ConnectionError if it is already."""
        with self._changed:
            if self.dropped:
                raise ConnectionResetError("nobody wants the answer any more")
            self._break_off = break_off
        try:
            yield
        finally:
            with self._changed:
                self._break_off = None

    def taken(self, parts: int) -> None:
        """Note that its sender is there, and how much of the answer has arrived."""
        with self._changed:
            self.heard = time.monotonic()
            self._taken = max(self._taken, parts)
            self._changed.notify_all()

    def send(self, part: bytes) -> None:
        """Send a part, as soon as there is room; ConnectionError when it is dropped."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.dropped or self._sent - self._taken < messages.WINDOW
            )
            if self.dropped:
                raise ConnectionResetError("nobody wants the answer any more")
            self._sent += 1
        self._reply(part)

    def give(self, piece: Piece) -> bool:
        """Take a piece, as soon as there is room; False if nothing more is wanted."""
        with self._changed:
            self.heard = time.monotonic()
            self._changed.wait_for(lambda: self._over or len(self._pieces) < _ROOM)
            if piece.number == self._given + 1 and not self._over:
                self._given = piece.number
                self._pieces.append(piece)
                self._changed.notify_all()
            return not self._over

    def next(self) -> Piece | None:
        """Wait for the next piece; None once nothing more is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._pieces)
            if self._over:
                return None
            piece = self._pieces.popleft()
            self._changed.notify_all()
            return piece

    def finish(self) -> None:
        """Want nothing more of its sender."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def drop(self) -> None:
        """Give it up: the API sees its client leave."""
        with self._changed:
            self.dropped = True
            self._over = True
            self._changed.notify_all()
            # Under the mutex: what it breaks off is not closed meanwhile.
            if self._break_off is not None:
                self._break_off()
