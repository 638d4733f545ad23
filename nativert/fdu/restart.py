"""Whether and when an application that has ended is started again: a decision without a clock.

A policy says which ends count. The wait doubles with every end in a row, up to a longest one,
and is spread so that instances which failed together do not come back together. Whoever was
healthy for long enough begins anew.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from nativert.fdu.attendance import Restart
from nativert.fdu.known import known

# The wait is at least this part of what the doubling says.
_LEAST: Final = 0.5
_MAX_DOUBLINGS: Final = 40


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the end of run `run`; `at` in seconds since the epoch.

    `failures` counts the ends in a row. `at` is None where it is not started again; `reason`
    then says why, `gave_up` if the policy wanted to.
    """

    run: int
    failures: int = 0
    at: float | None = None
    delay_s: float = 0.0
    reason: str = ""
    gave_up: bool = False


def decide(
    policy: Restart,
    before: Retry | None,
    *,
    run: int,
    failed: bool,
    healthy_s: float,
    now: float,
    chance: float,
) -> Retry:
    """Return what becomes of run *run*, which ended after *healthy_s* seconds of health.

    *chance* is a number from 0 to 1, evenly distributed. The same run has the same answer.
    """
    if before is not None and before.run == run:
        return before
    failures = 0 if before is None or healthy_s >= policy.reset_s else before.failures
    if policy.policy == "never":
        return Retry(run=run, reason="its restart policy is never")
    if policy.policy == "on-failure" and not failed:
        return Retry(run=run, reason="it ended without failure")
    if policy.max is not None and failures >= policy.max:
        tried: Literal["restart", "restarts"] = "restart" if failures == 1 else "restarts"
        reason = f"gave up after {failures} {tried}"
        return Retry(run=run, failures=failures, reason=reason, gave_up=True)
    doubled = policy.backoff_s * 2.0 ** min(failures, _MAX_DOUBLINGS)
    delay_s = min(doubled, policy.backoff_max_s) * (_LEAST + (1 - _LEAST) * chance)
    return Retry(run=run, failures=failures + 1, at=now + delay_s, delay_s=delay_s)


def left_s(retry: Retry, now: float) -> float | None:
    """Return the seconds until the attempt, None where there is none.

    Never more than the wait was: the clock may have been set back meanwhile.
    """
    if retry.at is None:
        return None
    return min(max(0.0, retry.at - now), retry.delay_s)


def encode(retry: Retry) -> str:
    """Return *retry* as the store keeps it."""
    return msgspec.json.encode(retry).decode()


def decode(text: str | None) -> Retry | None:
    """Return what `encode` wrote; None for nothing, and for what cannot be read."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text.encode(), type=known(Retry))
    except msgspec.ValidationError:
        return None
