"""What the supervisor keeps of one instance between two looks."""

from __future__ import annotations

from dataclasses import dataclass

from nativert.fdu.states import State
from nativert.runtime.supervision.follow import Follow
from nativert.runtime.supervision.health import Checks


@dataclass(slots=True)
class Watched:
    """One instance. Only `looking` and `again` are used by more than one thread at a time."""

    uuid: str
    state: State = State.DEFINED
    init: tuple[int | None, int | None] = (None, None)
    follow: Follow | None = None
    run: int = 0
    running_since: float | None = None
    checks: Checks | None = None
    probing: bool = False
    next_start: float | None = None
    looking: bool = False
    again: bool = False

    def close(self) -> None:
        """Close the connection to its init."""
        if self.follow is not None:
            self.follow.close()
            self.follow = None
