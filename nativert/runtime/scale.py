"""scale_fdu: new limits for a running application, all of them or none."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import msgspec

from nativert.errors import Code, NativertError, StepError
from nativert.fdu.states import State
from nativert.isolation.cgroups.driver import Cgroup, UnenforceableError
from nativert.isolation.cgroups.limits import Limits
from nativert.runtime import limits as limits_of
from nativert.runtime.context import Context
from nativert.runtime.failpoints import failpoint
from nativert.runtime.observe import Observed, put_back_limits
from nativert.store import boot
from nativert.store.durable import Row

_RECLAIM_TIMEOUT_S = 2.0
_MIB = 1 << 20


def scale(
    context: Context, seen: Observed, change: Mapping[str, object], *, force: bool = False
) -> Observed:
    """Apply *change* (fields of `Limits`, None unsets); the caller holds the lock.

    A memory limit under the present working set is refused unless *force*; then the
    kernel reclaims first, and may still kill.
    """
    row, facts = seen.row, seen.facts
    if facts is None:
        raise AssertionError(f"{seen.state} without facts")
    before = limits_of.decode(row.limits) or Limits()
    wanted = limits_of.changed(before, change).rounded()
    context.driver.check(wanted)
    cgroup = context.cgroup(row.uuid)
    shrinks = wanted.memory_max is not None and (
        before.memory_max is None or wanted.memory_max < before.memory_max
    )
    if shrinks and not force:
        _refuse_under_working_set(row.name, cgroup, wanted.memory_max or 0)
    intent = boot.Intent(run=facts.run, limits=row.limits)
    boot.begin(context.paths, row.uuid, intent)
    try:
        failpoint("scale.intent")
        if shrinks and force:
            _reclaim(context, cgroup, before, wanted)
        # The disk works while the kernel is told, once its worker has been on this processor.
        row = context.store.update(row.uuid, limits=limits_of.encode(wanted), wait=False)
        saving = context.store.save()
        os.sched_yield()
        failpoint("scale.stored")
        applied = cgroup.apply(wanted, since=before)
        failpoint("scale.applied")
        if applied != wanted:
            row = context.store.update(row.uuid, limits=limits_of.encode(applied))
        # Records and kernel agree: whoever dies from here on leaves nothing to settle.
        boot.finish(context.paths, row.uuid)
        saving.wait()
    except BaseException as e:
        _scale_back(context, row, intent, before)
        if isinstance(e, OSError):
            raise StepError(
                row.name, "scale", e, code=Code.SCALE, hint="every limit is as it was before"
            ) from e
        raise
    return Observed(row, State.RUNNING, facts, seen.end)


def _scale_back(context: Context, row: Row, intent: boot.Intent, before: Limits) -> None:
    try:
        # Again, where only the disk has failed: until all is as it was it reads as SCALING.
        boot.begin(context.paths, row.uuid, intent)
        put_back_limits(context, row, limits_of.encode(before))
        boot.finish(context.paths, row.uuid)
    except (OSError, NativertError):
        pass  # It reads as SCALING: the next look writes the limits again.


def _refuse_under_working_set(name: str, cgroup: Cgroup, memory_max: int) -> None:
    used = cgroup.working_set_bytes(above=memory_max)
    if used > memory_max:
        raise NativertError(
            f"{name}: cannot scale memory to {memory_max / _MIB:.1f} MiB:"
            f" {used / _MIB:.1f} MiB are in use",
            code=Code.SCALE,
            hint="--force reclaims what it can; the kernel may kill the application",
        )


def _reclaim(context: Context, cgroup: Cgroup, before: Limits, wanted: Limits) -> None:
    # memory.high slows the application down and reclaims; memory.max at once would kill.
    gentle = msgspec.structs.replace(before, memory_high=wanted.memory_max)
    try:
        context.driver.check(gentle)
    except UnenforceableError:
        return  # v1: lowering the limit itself reclaims, and answers EBUSY where it cannot.
    cgroup.apply(gentle)
    deadline = time.monotonic() + _RECLAIM_TIMEOUT_S
    while cgroup.usage().memory_bytes > (wanted.memory_max or 0) and time.monotonic() < deadline:
        time.sleep(0.01)
