"""What a program inside gets for stdin, stdout and stderr: never the operator's terminal.

Whoever holds a terminal's descriptor reads what is typed there, as long as it lives, and
changes its settings. So a terminal stays on this side, and a pipe goes in.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread

from nativert.cli.output import write_all

_CHUNK = 65536


class Streams:
    """Three descriptors for a program; `finish` shows what it has written until then."""

    def __init__(self, stdin: int) -> None:
        self._close = ExitStack()
        self._stop, self._stopping = os.pipe2(os.O_CLOEXEC)
        self._close.callback(os.close, self._stop)
        self._inner: list[int] = []
        self._copies: list[Thread] = []
        self._stdin = self._typed(stdin) if os.isatty(stdin) else stdin
        self._stdout = self._shown(1) if os.isatty(1) else 1
        self._stderr = self._shown(2) if os.isatty(2) else 2

    @property
    def stdio(self) -> tuple[int, int, int]:
        """What to hand to the program."""
        return self._stdin, self._stdout, self._stderr

    def _shown(self, terminal: int) -> int:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        self._inner.append(theirs)
        self._close.callback(os.close, ours)
        self._copies.append(self._begin(lambda: self._show(ours, terminal)))
        return theirs

    def _typed(self, terminal: int) -> int:
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        self._inner.append(theirs)
        self._begin(lambda: self._type(terminal, ours))
        return theirs

    @staticmethod
    def _begin(body: Callable[[], None]) -> Thread:
        # Daemon: a terminal that nobody types on must not keep the command.
        thread = Thread(target=body, name="exec-stream", daemon=True)
        thread.start()
        return thread

    def _show(self, source: int, terminal: int) -> None:
        over = False
        while True:
            poll = select.poll()
            poll.register(source, select.POLLIN)
            if not over:
                poll.register(self._stop, select.POLLIN)
            # After the end only what is there: a child of the program may keep the pipe.
            ready = dict(poll.poll(0 if over else None))
            if source in ready:
                data = os.read(source, _CHUNK)
                if not data:
                    return
                try:
                    write_all(terminal, data)
                except OSError:
                    return  # The terminal was hung up; the program gets SIGPIPE.
            elif over:
                return
            over = over or self._stop in ready

    def _type(self, terminal: int, target: int) -> None:
        try:
            while data := os.read(terminal, _CHUNK):
                write_all(target, data)
        except OSError:
            pass  # Either side is gone.
        finally:
            os.close(target)

    def handed_over(self) -> None:
        """Close this side's copies of what the program has now."""
        while self._inner:
            os.close(self._inner.pop())

    def finish(self) -> None:
        """Show what is in the pipes; the program has ended."""
        self.handed_over()
        os.close(self._stopping)
        for copy in self._copies:
            copy.join()
        self._close.close()


@contextmanager
def streams(stdin: int) -> Iterator[Streams]:
    """Give the program *stdin* and this command's outputs, pipes where they are terminals."""
    made = Streams(stdin)
    try:
        yield made
    finally:
        made.finish()
