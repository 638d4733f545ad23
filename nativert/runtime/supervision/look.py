"""One look at one instance: follow its init, and decide what becomes of its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nativert.errors import NativertError, UnknownInstanceError
from nativert.fdu import restart
from nativert.fdu.states import WITH_APPLICATION, State
from nativert.runtime import edges
from nativert.runtime.context import descriptor_of
from nativert.runtime.observe import Observed
from nativert.runtime.supervision import acts
from nativert.runtime.supervision.follow import Follow
from nativert.runtime.supervision.health import Checks
from nativert.runtime.supervision.watched import Watched

if TYPE_CHECKING:
    from nativert.runtime.node import Node
    from nativert.runtime.supervision.supervisor import Supervisor

_WITH_SANDBOX: Final = (*WITH_APPLICATION, State.CONFIGURED)
_BUSY_S: Final = 0.2
_FOLLOW_AGAIN_S: Final = 1.0
_INIT_TIMEOUT_S: Final = 2.0


class Looks:
    """What the workers of a supervisor do with an instance that has changed."""

    def __init__(self, node: Node, supervisor: Supervisor, now: Callable[[], float]) -> None:
        self._node = node
        self._supervisor = supervisor
        self._now = now

    def look(self, watched: Watched) -> None:
        """Look, follow, and act on what is wanted; called by one thread at a time for each."""
        try:
            if self._busy(watched):
                return
            seen = self._node.look(watched.uuid)
        except UnknownInstanceError:
            self._supervisor.forget(watched)
            return
        ended = seen.state in (State.CONFIGURED, State.DEFINED)
        if ended and watched.state in _WITH_SANDBOX and watched.state is not seen.state:
            # It may have ended by itself, which no operation has reported.
            self._node.report(seen.row, seen.state)
        watched.state = seen.state
        followed = self._follow(watched, seen)
        self._attend(watched, seen)
        wanted = ended and seen.row.wanted == State.RUNNING.value
        if not wanted:
            watched.brought.clear()  # Of an attempt that was withdrawn, say.
        next_look = self._wanted(watched, seen) if wanted else None
        if not followed:
            again = time.monotonic() + _FOLLOW_AGAIN_S
            next_look = min(again, next_look or again)
        watched.next_look = next_look

    def _busy(self, watched: Watched) -> bool:
        # An operation is on it: a worker must not wait for a grace of an hour.
        if not self._node.context.lock(watched.uuid).busy():
            return False
        watched.next_look = time.monotonic() + _BUSY_S
        return True

    def _follow(self, watched: Watched, seen: Observed) -> bool:
        """Hear of the end of what runs from now on; False if its init has not answered."""
        facts = seen.facts
        init = (None, None) if facts is None else (facts.init_pid, facts.init_start)
        if watched.init != init or (watched.follow is not None and watched.follow.fileno() < 0):
            self._supervisor.unregister(watched)
            watched.init = init
        if facts is None or init == (None, None):
            return True
        try:
            if watched.follow is None:
                channel = self._node.context.init(watched.uuid, timeout_s=_INIT_TIMEOUT_S)
                watched.follow = Follow(channel)
                if seen.state in WITH_APPLICATION:
                    watched.follow.run(facts.run)
                self._supervisor.register(watched)
            elif seen.state in WITH_APPLICATION:
                watched.follow.run(facts.run)
        except (OSError, EOFError):
            # It ends, or is busy: asked again until the next look finds it gone.
            self._supervisor.unregister(watched)
            return False
        return True

    def _attend(self, watched: Watched, seen: Observed) -> None:
        facts = seen.facts
        if facts is None or seen.state not in WITH_APPLICATION:
            return
        now = time.monotonic()
        if watched.running_since is None or watched.run != facts.run:
            before_s = 0.0 if facts.started_at is None else max(0.0, self._now() - facts.started_at)
            watched.run, watched.running_since = facts.run, now - before_s
            health = descriptor_of(seen.row.descriptor, seen.row.name).native.health
            watched.checks = None if health is None else Checks.begin(health, facts.run, now)

    def _wanted(self, watched: Watched, seen: Observed) -> float | None:
        """Have it started again if it is time; return when it will be."""
        retry = acts.decide(
            self._node, watched.uuid, healthy_s=self._healthy_s(watched, seen), now=self._now()
        )
        watched.running_since, watched.checks = None, None
        left_s = None if retry is None else restart.left_s(retry, self._now())
        if left_s is None:
            return None
        if watched.planned != retry:
            # Once: a clock that is set back would make it the whole wait, again and again.
            watched.planned, watched.start_at = retry, time.monotonic() + left_s
        start_at = max(watched.start_at, watched.not_before)
        if start_at > time.monotonic():
            return start_at
        self._supervisor.act(watched, self._start)
        return None

    def _start(self, watched: Watched) -> None:
        try:
            if not self._ready(watched):
                return
            acts.start_again(self._node, watched.uuid, self._supervisor.ending)
        except UnknownInstanceError:
            pass  # The look that follows forgets it.
        except NativertError:
            # It has been told. No run has come of it, so the same end is decided anew.
            acts.decide(self._node, watched.uuid, healthy_s=0.0, now=self._now(), anew=True)
        watched.brought.clear()
        watched.faults = 0

    def _ready(self, watched: Watched) -> bool:
        """Tell whether all that it depends on runs; else it is put off for a while."""
        try:
            wait_s = self._supervisor.starts.ready(watched.uuid, watched.brought)
        except UnknownInstanceError:
            raise
        except NativertError as e:
            row = self._node.context.store.get(watched.uuid)
            if descriptor_of(row.descriptor, row.name).native.restart.policy != "never":
                acts.no_dependency(self._node, watched.uuid, e.message)
                raise
            # One that is started at boot has one attempt, and this was none of its own.
            data = edges.encode({"message": e.message})
            self._node.context.store.note(watched.uuid, "dependency-failed", data)
            watched.brought.clear()
            watched.put_off()
            return False
        if wait_s is not None:
            watched.not_before = time.monotonic() + wait_s
        return wait_s is None

    def _healthy_s(self, watched: Watched, seen: Observed) -> float:
        end = seen.end
        if watched.checks is not None:
            since = watched.checks.healthy_since
            return 0.0 if since is None else time.monotonic() - since
        if end is None or end.started_at is None or end.ended_at is None:
            return 0.0
        return max(0.0, end.ended_at - end.started_at)
