"""pause_fdu and resume_fdu: the cgroup freezer, with the application in it and init outside."""

from __future__ import annotations

import msgspec

from nativert.errors import Code, StepError
from nativert.fdu.states import State
from nativert.runtime.context import Context
from nativert.runtime.observe import Observed
from nativert.store import boot

_FREEZE_TIMEOUT_S = 5.0


def pause(context: Context, seen: Observed) -> Observed:
    """Freeze; the caller holds the lock. On a timeout everything runs again."""
    return _switch(context, seen, "pause", State.PAUSED)


def resume(context: Context, seen: Observed) -> Observed:
    """Thaw; the caller holds the lock."""
    return _switch(context, seen, "resume", State.RUNNING)


def _switch(context: Context, seen: Observed, intent: str, to: State) -> Observed:
    row, facts = seen.row, seen.facts
    if facts is None:
        raise AssertionError(f"{seen.state} without facts")
    cgroup = context.driver.open(facts.cgroup)
    # A crash from here on is settled by asking the kernel whether it is frozen.
    boot.write_facts(context.paths, row.uuid, msgspec.structs.replace(facts, intent=intent))
    try:
        if to is State.PAUSED:
            cgroup.freeze(_FREEZE_TIMEOUT_S)
        else:
            cgroup.thaw()
    except OSError as e:
        boot.write_facts(context.paths, row.uuid, facts)
        raise StepError(row.name, intent, e, code=Code.PAUSE) from e
    switched = msgspec.structs.replace(facts, state=to.value, intent=None)
    boot.write_facts(context.paths, row.uuid, switched)
    return Observed(row, to, switched, seen.end)
