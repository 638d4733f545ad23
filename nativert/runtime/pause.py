"""pause_fdu and resume_fdu: the cgroup freezer, with the application in it and init outside.

Nothing is noted: whether the application is PAUSED is the kernel's to say, at any time.
"""

from __future__ import annotations

import errno
from typing import Final

from nativert.errors import Code, StepError
from nativert.fdu.states import State
from nativert.runtime.context import Context
from nativert.runtime.failpoints import failpoint
from nativert.runtime.observe import Observed

_FREEZE_TIMEOUT_S: Final = 5.0


def pause(context: Context, seen: Observed) -> Observed:
    """Freeze; the caller holds the lock. On a timeout everything runs again."""
    cgroup = context.cgroup(seen.row.uuid)
    try:
        populated = cgroup.freeze(_FREEZE_TIMEOUT_S)
        failpoint("pause.frozen")
        if not populated:
            # An empty cgroup freezes at once, and holds nobody.
            raise ProcessLookupError(
                errno.ESRCH, "the application is not in its cgroup", cgroup.name
            )
    except OSError as e:
        try:
            cgroup.thaw()
        except OSError:
            pass  # Told is why it could not be paused; PAUSED it is if the kernel says so.
        raise StepError(seen.row.name, "pause", e, code=Code.PAUSE) from e
    return Observed(seen.row, State.PAUSED, seen.facts, seen.end)


def resume(context: Context, seen: Observed) -> Observed:
    """Thaw; the caller holds the lock. On a timeout it is frozen again."""
    cgroup = context.cgroup(seen.row.uuid)
    try:
        cgroup.thaw()
        failpoint("resume.thawed")
    except OSError as e:
        try:
            cgroup.freeze(_FREEZE_TIMEOUT_S)
        except OSError:
            pass  # Told is why it could not be resumed; RUNNING it is if the kernel says so.
        raise StepError(seen.row.name, "resume", e, code=Code.PAUSE) from e
    return Observed(seen.row, State.RUNNING, seen.facts, seen.end)
