"""INT, TERM and HUP as one exception, or handed to whoever watches an application."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal ended the command; operations unwind as after a failure.

    Not a KeyboardInterrupt: click turns that one into its own message.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def interrupt(signum: int) -> NoReturn:
    """Raise `Interrupted` in the main thread."""
    raise Interrupted(signum)


@contextmanager
def delivered(to: Callable[[int], object]) -> Iterator[None]:
    """Within the block the three signals call *to* with their number; see signal(7).

    A signal that the caller ignores stays ignored: HUP under nohup(1), INT of a background job.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, disposition in before.items():
            if disposition is not signal.SIG_IGN:
                signal.signal(number, lambda signum, _frame: to(signum))
        yield
    finally:
        for number, disposition in before.items():
            signal.signal(number, disposition)
