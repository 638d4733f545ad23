"""A running application seen from the foreground: its log, its end, and the operator's signals.

Three things happen at once: the log is relayed, the end is awaited, and a signal may ask for
the stop, which itself may take the whole grace period while the log goes on. Each has a thread;
all report to one queue, which the main thread reads.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from nativert.cli.output import StdoutClosedError
from nativert.cli.relay import Relay
from nativert.errors import TransitionError
from nativert.runtime.views import Instance

if TYPE_CHECKING:
    from nativert.runtime.facade import Facade


@dataclass(frozen=True, slots=True)
class Drained:
    """The log was relayed to its end."""


@dataclass(frozen=True, slots=True)
class ReaderGone:
    """Nobody reads this command's stdout or stderr any more."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The stop that was asked for is done, or was not needed."""


# Between two looks: whether the next attempt has begun, whether a signal has come.
_LOOK_S = 0.2

# A number is a signal, an Instance the one that ended.
Event = int | Instance | Drained | ReaderGone | Stopped | Exception


class Watch:
    """Follows one instance until its application ended and the log is drained."""

    def __init__(
        self, node: Facade, instance: str, events: SimpleQueue[Event], *, restarts: bool = False
    ) -> None:
        self._node = node
        self._instance = instance
        self._events = events
        self._restarts = restarts
        self.stopping = False

    def until_the_end(self) -> Instance:
        """Return the instance after its end; raises what one of the threads has met."""
        self._begin(self._relay_log)
        self._begin(self._await_end)
        ended: Instance | None = None
        drained = stopped = False
        while ended is None or not drained or stopped is not self.stopping:
            match self._next():
                case Instance() as ended:
                    pass
                case Drained():
                    drained = True
                case Stopped():
                    stopped = True
                case ReaderGone():
                    drained = True
                    self._stop()
                case Exception() as error:
                    raise error
                case _ if ended is not None:
                    # Only the log is left, and whoever reads it does not: a stopped terminal.
                    drained = True
                case signal.SIGINT if self.stopping:
                    self._node.kill(self._instance, signal.SIGKILL)
                case _:
                    self._stop()
        return ended

    def _next(self) -> Event:
        # A signal that comes after Python's last look for one, and before the wait in get
        # begins, is seen when that wait ends: it must not last.
        while True:
            try:
                return self._events.get(timeout=_LOOK_S)
            except Empty:
                continue

    def _begin(self, body: Callable[[], Event]) -> None:
        def report() -> None:
            try:
                event = body()
            except Exception as e:  # noqa: BLE001 (the main thread raises it)
                event = e
            self._events.put(event)

        # Daemon: a thread that waits for a reader of stdout must not keep the process.
        Thread(target=report, name=body.__name__, daemon=True).start()

    def _relay_log(self) -> Event:
        relay = Relay()
        try:
            for line in self._node.logs(self._instance, follow=True):
                relay.write(line)
        except StdoutClosedError:
            return ReaderGone()
        return Drained()

    def _await_end(self) -> Event:
        ended = self._node.wait(self._instance)
        # With a restart policy the answer is the end of the last attempt.
        while self._restarts and self._waits():
            time.sleep(_LOOK_S)
            ended = self._node.wait(self._instance)
        return ended

    def _waits(self) -> bool:
        native: Any = self._node.inspect(self._instance)["native"]
        return bool(native["restart"]["waits"])

    def _stop(self) -> None:
        if not self.stopping:
            self.stopping = True
            self._begin(self._stop_application)

    def _stop_application(self) -> Event:
        try:
            self._node.stop(self._instance)
        except TransitionError as e:
            # RUNNING is the only state to stop from. Paused: killed as it is. Else it has
            # ended by itself, which the other thread reports.
            if e.state == "PAUSED":
                self._node.kill(self._instance, signal.SIGKILL)
        return Stopped()
