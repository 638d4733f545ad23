"""What the supervisor keeps of one instance between two looks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from nativert.fdu.restart import Retry
from nativert.fdu.states import State
from nativert.runtime.supervision.follow import Follow
from nativert.runtime.supervision.health import Checks

_LONGEST_S: Final = 60.0


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
    # Attempts in a row that could not even be noted, or count as none.
    faults: int = 0
    looking: bool = False
    again: bool = False
    acting: bool = False

    def put_off(self) -> None:
        """Have nothing tried for a while, which is longer each time in a row."""
        self.faults += 1
        delay_s = min(2.0 ** min(self.faults, 10), _LONGEST_S)
        self.not_before = time.monotonic() + delay_s

    def close(self) -> None:
        """Close the connection to its init."""
        if self.follow is not None:
            self.follow.close()
            self.follow = None
