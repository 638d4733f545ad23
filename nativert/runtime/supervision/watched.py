"""What the supervisor keeps of one instance between two looks."""

from __future__ import annotations

from dataclasses import dataclass, field

from nativert.fdu.restart import Retry
from nativert.fdu.states import State
from nativert.runtime.supervision.follow import Follow
from nativert.runtime.supervision.health import Checks


@dataclass(slots=True)
class Watched:
    """One instance. Only `looking`, `again` and `acting` are of more than one thread at a time.

    Times are of time.monotonic(): the other clock may be set.
    """

    uuid: str
    state: State = State.DEFINED
    init: tuple[int | None, int | None] = (None, None)
    follow: Follow | None = None
    run: int = 0
    running_since: float | None = None
    checks: Checks | None = None
    probing: bool = False
    # When to look again, unasked.
    next_look: float | None = None
    # The decision that is waited for, until when, and before when nothing is tried all the same.
    planned: Retry | None = None
    start_at: float = 0.0
    not_before: float = 0.0
    # What has been started for this attempt, because this instance depends on it.
    brought: set[str] = field(default_factory=set)
    # How often in a row that was in vain, where it counts as no attempt.
    vain: int = 0
    # Attempts in a row that could not even be noted.
    faults: int = 0
    looking: bool = False
    again: bool = False
    acting: bool = False

    def close(self) -> None:
        """Close the connection to its init."""
        if self.follow is not None:
            self.follow.close()
            self.follow = None
