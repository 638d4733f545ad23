"""Looking at instances for those who ask: what looking finds is noted where nobody is at work."""

from __future__ import annotations

from collections.abc import Iterator

from nativert.errors import StepError, UnknownInstanceError
from nativert.fdu.states import State
from nativert.runtime.context import Context
from nativert.runtime.observe import Observed, look_beside, observe, settle
from nativert.store.durable import Row


class Sight:
    """The eyes of one node."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def look(self, row: Row) -> Observed:
        """Look at an instance; note what has happened unless an operation is on it."""
        seen = observe(self._context, row)
        interrupted = seen.facts is not None and seen.facts.intent
        unsettled = seen.event is not None or interrupted or row.moving is not None
        if not unsettled:
            return seen
        lock = self._context.lock(row.uuid)
        if not lock.try_acquire():
            return look_beside(self._context, row.uuid)
        try:
            settled = settle(self._context, self._context.store.get(row.uuid))
            if settled.state is State.UNDEFINED:
                raise UnknownInstanceError(row.name)  # It was on its way here, and is not any more.
            return settled
        except UnknownInstanceError:
            lock.forget()
            raise
        except (StepError, OSError):
            return seen  # What cannot be released now is told by the next operation.
        finally:
            lock.release()

    def looks(self) -> Iterator[Observed]:
        """Look at every instance, in the order of definition."""
        for row in self._context.store.rows():
            if row.corrupt:
                continue
            try:
                yield self.look(row)
            except UnknownInstanceError:
                continue  # Undefined meanwhile.
