"""What a row of checks says of an instance: healthy, unhealthy, or not known yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nativert.fdu.attendance import Health
from nativert.runtime.supervision.probe import Result

Change = Literal["healthy", "unhealthy"]


@dataclass(slots=True)
class Checks:
    """The checks of one run; all times in seconds of one clock that never goes back."""

    health: Health
    run: int
    started: float
    due: float
    healthy: bool | None = None
    healthy_since: float | None = None
    failures: int = 0
    last: str = ""

    @classmethod
    def begin(cls, health: Health, run: int, now: float) -> Checks:
        """Return the checks of a run that has just started; the first is due soon."""
        return cls(health, run, now, now + min(health.interval_s, 1.0))

    def note(self, result: Result, now: float) -> Change | None:
        """Take one result; return what it changes."""
        self.last = result.text
        self.due = now + self.health.interval_s
        if result.healthy:
            self.failures = 0
            if self.healthy:
                return None
            self.healthy, self.healthy_since = True, now
            return "healthy"
        if self.healthy is None and now - self.started < self.health.start_period_s:
            return None
        self.failures += 1
        if self.failures < self.health.retries or self.healthy is False:
            return None
        self.healthy, self.healthy_since = False, None
        return "unhealthy"
