"""pause_fdu and resume_fdu: the cgroup freezer, with the application in it and init outside."""

from __future__ import annotations

import errno

import msgspec

from nativert.errors import Code, StepError
from nativert.fdu.states import State
from nativert.isolation.cgroups.driver import Cgroup
from nativert.runtime.context import Context
from nativert.runtime.failpoints import failpoint
from nativert.runtime.observe import Observed
from nativert.store import boot
from nativert.store.boot import Facts

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
    switched = msgspec.structs.replace(facts, state=to.value, intent=None)
    try:
        failpoint("pause.intent" if to is State.PAUSED else "resume.intent")
        _freeze(cgroup, frozen=to is State.PAUSED)
        failpoint("pause.switched" if to is State.PAUSED else "resume.switched")
        boot.write_facts(context.paths, row.uuid, switched)
    except OSError as e:
        _switch_back(context, row.uuid, cgroup, facts)
        raise StepError(row.name, intent, e, code=Code.PAUSE) from e
    return Observed(row, to, switched, seen.end)


def _freeze(cgroup: Cgroup, *, frozen: bool) -> None:
    if not frozen:
        cgroup.thaw()
        return
    cgroup.freeze(_FREEZE_TIMEOUT_S)
    if not cgroup.populated():
        # An empty cgroup freezes at once, and holds nobody.
        raise ProcessLookupError(errno.ESRCH, "the application is not in its cgroup", cgroup.name)


def _switch_back(context: Context, uuid: str, cgroup: Cgroup, facts: Facts) -> None:
    try:
        if facts.state == State.PAUSED.value:
            cgroup.freeze(_FREEZE_TIMEOUT_S)
        else:
            cgroup.thaw()
        boot.write_facts(context.paths, uuid, facts)
    except OSError:
        pass  # The intent stands: the next look asks the kernel whether it is frozen.
