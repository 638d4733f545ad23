"""The true state of an instance: what was noted, held against what the kernel says.

Looking changes nothing. `settle` (under the instance's lock) carries out the events of
the state machine that looking found: an end that nobody saw, an init that is gone, an
operation that its process did not live to finish.
"""

from __future__ import annotations

import os
import time
from typing import Final

import msgspec

from nativert.errors import Code, StepError
from nativert.fdu.known import known
from nativert.fdu.states import WITH_APPLICATION, Event, State, next_state
from nativert.isolation import process
from nativert.launcher.client import ReportedError
from nativert.launcher.protocol import Message
from nativert.runtime import limits as limits_of
from nativert.runtime import release, verdict
from nativert.runtime.context import Context
from nativert.runtime.failpoints import failpoint
from nativert.runtime.views import End
from nativert.store import boot
from nativert.store.boot import ExitFacts, Facts
from nativert.store.durable import Changes, Row

_STATUS_TIMEOUT_S = 10.0
# How long CRIU may take to put an application back, and how often it is asked for.
RESTORE_TIMEOUT_S = 600.0
_RESTORE_AGAIN_S = 0.05
_LOOKS = 8
# After a stop that an operator asked for.
NOT_WANTED: Final[Changes] = {"wanted": State.CONFIGURED.value, "retry": None}


class Observed(msgspec.Struct, frozen=True):
    """One look at an instance. `event` has happened and is not yet noted."""

    row: Row
    state: State
    facts: Facts | None
    end: End | None
    event: Event | None = None


def observe(context: Context, row: Row) -> Observed:
    """Return the state of *row* by evidence: boot id, init's pid and start time, exit.json."""
    seen = look_here(context, row)
    return seen if row.moving is None else _on_its_way(seen, row.moving)


def _on_its_way(seen: Observed, moving: str) -> Observed:
    from nativert.runtime.migration.phases import shown

    return msgspec.structs.replace(seen, state=shown(seen.state, moving))


def look_here(context: Context, row: Row) -> Observed:
    """Return what this node has of *row*, whether or not it is on its way to another."""
    facts = boot.read_facts(context.paths, row.uuid)
    end = verdict.decode(row.end)
    if facts is None:
        if row.desired == State.DEFINED.value:
            return Observed(row, State.DEFINED, None, end)
        rebooted = row.boot_id != boot.boot_id()
        if rebooted and end is not None and row.desired == State.CONFIGURED.value:
            # Its application had ended before, and that is what it is remembered by.
            return Observed(row, State.DEFINED, None, end, Event.INIT_LOST)
        reason = verdict.node_rebooted() if rebooted else verdict.init_lost(None)
        return Observed(row, State.DEFINED, None, reason, Event.INIT_LOST)
    state = State(facts.state)
    if state in WITH_APPLICATION and _end_is_noted(row, facts):
        state, facts = State.CONFIGURED, _without_application(facts)
    if state is State.DEFINED:
        return Observed(row, state, facts, end)
    if state in WITH_APPLICATION or facts.intent == "run":
        return _with_application(context, row, facts, state)
    if process.alive(facts.init_pid, facts.init_start):
        return Observed(row, state, facts, end)
    if facts.intent == "clean":
        # Its end was asked for, and is not what the instance is to be remembered by.
        return Observed(row, State.DEFINED, facts, end)
    return _lost(context, row, facts, state)


def _end_is_noted(row: Row, facts: Facts) -> bool:
    # A stop leaves the facts as they are: what was desired and the end are changed at once.
    ended = row.desired == State.CONFIGURED.value and row.end is not None
    return ended and row.run_count == facts.run


def _without_application(facts: Facts) -> Facts:
    """Return the facts of an instance whose application has ended."""
    return msgspec.structs.replace(
        facts, state=State.CONFIGURED.value, intent=None, started_at=None, stop=None, limits=None
    )


def unchanged(context: Context, seen: Observed) -> Observed | None:
    """Return *seen* if nothing has happened to the instance since, by the word of its init.

    For who held its lock last. Init tells of the application's end on the kept connection, and
    with init the connection ends.
    """
    if seen.state is State.DEFINED:
        return seen
    idle = seen.state is State.CONFIGURED
    # Only a living init listens, and the next operation will want the connection.
    channel = context.kept_channel(seen.row.uuid, connect=idle)
    if channel is None or not channel.quiet() or not (idle or channel.follows):
        return None
    return seen


def look_beside(context: Context, uuid: str) -> Observed:
    """Observe an instance on which an operation goes on, without waiting for it.

    The row, the facts and exit.json change one after the other; what one look finds in them
    holds if they are the same after it. Raises UnknownInstanceError.
    """
    for _ in range(_LOOKS):
        row = context.store.get(uuid)
        seen = observe(context, row)
        if seen.event is None or (
            context.store.get(uuid) == row and boot.read_facts(context.paths, uuid) == seen.facts
        ):
            break
    return seen


def _with_application(context: Context, row: Row, facts: Facts, state: State) -> Observed:
    ended = boot.read_exit(context.paths, row.uuid)
    if ended is None or ended.run != facts.run:
        # An end of an earlier run says nothing about this one.
        ended = None
        pid, start = facts.details.get("pid"), facts.details.get("start")
        if not (isinstance(pid, int) and isinstance(start, int) and process.alive(pid, start)):
            if not process.alive(facts.init_pid, facts.init_start):
                return _lost(context, row, facts, state)
            if state in WITH_APPLICATION:
                try:
                    ended = _end_told_by_init(context, row, facts)
                except FileNotFoundError:
                    return _lost(context, row, facts, state)
    if ended is not None:
        return _ended(context, row, facts, ended)
    if state is State.SCALING:
        return Observed(row, state, facts, None, Event.SCALE_INTERRUPTED)
    if not _frozen(context, row):
        return Observed(row, state, facts, None)
    if not process.alive(facts.init_pid, facts.init_start):
        return _lost(context, row, facts, state)  # Only in the v1 freezer does one outlive it.
    return Observed(row, State.PAUSED, facts, None)


def _frozen(context: Context, row: Row) -> bool:
    try:
        return context.cgroup(row.uuid).frozen()
    except FileNotFoundError:
        return False  # Removed from outside: nothing in it is frozen.


def _ended(context: Context, row: Row, facts: Facts, ended: ExitFacts) -> Observed:
    told = verdict.of_exit(
        ended,
        stop=facts.stop if facts.intent == "stop" else None,
        limits=limits_of.decode(row.limits),
        inquire=lambda: _inquiry(context, row, facts),
    )
    return Observed(row, State.CONFIGURED, facts, told, Event.APPLICATION_ENDED)


def _inquiry(context: Context, row: Row, facts: Facts) -> verdict.Inquiry:
    # Few ends need it, and no command's start is to pay for it.
    from nativert.runtime.diagnosis_run import Inquiry

    return Inquiry(context, row, facts)


def _lost(context: Context, row: Row, facts: Facts, state: State) -> Observed:
    lost = verdict.init_lost(facts.started_at, _inquiry(context, row, facts).init_fate())
    return Observed(row, next_state(state, Event.INIT_LOST), facts, lost, Event.INIT_LOST)


def _end_told_by_init(context: Context, row: Row, facts: Facts) -> ExitFacts | None:
    """Ask init for an end that is not in exit.json: no room, or removed, or damaged.

    None if the application has not ended for init; FileNotFoundError if init has no socket
    any more, and with it no use.
    """
    status = _status(context, row)
    if status is None or (status["state"] != "idle" and status.get("run") == facts.run):
        return None
    unknown = ExitFacts(run=facts.run, boot_id=facts.boot_id, pid=0, cause="unknown")
    return _told(status, facts) or unknown


def _told(status: Message, facts: Facts) -> ExitFacts | None:
    """Return the end of the present run that init has in its status."""
    try:
        told = msgspec.convert(status.get("end"), known(ExitFacts))
    except msgspec.ValidationError:
        return None
    return told if told.run == facts.run else None


def _status(context: Context, row: Row) -> Message | None:
    """Return what init says of the application; None if it does not answer now."""
    try:
        with context.init(row.uuid, timeout_s=_STATUS_TIMEOUT_S) as channel:
            status, fds = channel.call({"verb": "status", "pidfd": True})
    except (FileNotFoundError, ConnectionRefusedError) as e:
        raise FileNotFoundError(
            e.errno, e.strerror, str(context.paths.instance_run(row.uuid))
        ) from e
    except (OSError, EOFError, ReportedError):
        return None
    for fd in fds:
        status["host_pid"] = process.host_pid(fd)
        os.close(fd)
    return status


def settle(context: Context, row: Row) -> Observed:
    """Note what has happened and finish or undo what was interrupted; holds the lock.

    Returns the state from which an operation may start. Raises StepError for what cannot
    be released.
    """
    if row.moving is None:
        return settle_here(context, row)
    from nativert.runtime.migration.settling import settle_moving

    return settle_moving(context, row)


def settle_here(context: Context, row: Row) -> Observed:
    """Settle what this node has of *row*, whether or not it is on its way to another."""
    seen = look_here(context, row)
    facts = seen.facts
    if facts is None:
        if seen.event is None and not os.path.lexists(context.paths.instance_run(row.uuid)):
            return seen
        release.everything(context, row, None)
        return _noted(context, seen, State.DEFINED)
    if seen.event is Event.INIT_LOST or facts.intent in ("configure", "clean"):
        # What configure had made goes; what clean had left goes too.
        release.everything(context, row, facts)
        return _noted(context, seen, State.DEFINED)
    if facts.limits is not None:
        row = put_back_limits(context, row, facts.limits)
        seen = msgspec.structs.replace(seen, row=row)
    if seen.event is Event.APPLICATION_ENDED:
        after = application_ended(context, seen)
        if process.alive(facts.init_pid, facts.init_start):
            return after
        # Who ended all at once, such as systemd its scope, left init the time to tell the end.
        return settle_here(context, after.row)
    if facts.intent == "run":
        return _after_run(context, seen)
    if seen.state is State.SCALING:
        return _with_state(context, seen, State.RUNNING)
    if facts.intent == "stop" and facts.stop is not None and facts.stop.by_operator:
        # The operator's command has ended and the application has not: it is told as running.
        row = context.store.update(row.uuid, wanted=State.RUNNING.value)
        seen = msgspec.structs.replace(seen, row=row)
    if facts.intent is not None:
        return _with_state(context, seen, State(facts.state), shown=seen.state)
    return seen


def ended_as_told(context: Context, row: Row, facts: Facts, message: Message) -> Observed | None:
    """Return what init has told of the end; None if that is not of the run that *facts* has."""
    told = _told(message, facts)
    return None if told is None else _ended(context, row, facts, told)


def application_ended(
    context: Context, seen: Observed, *, frozen: bool = True, soon: bool = False
) -> Observed:
    """Note the end of the application: the instance is CONFIGURED, with the reason kept.

    *frozen* unless it is known that its cgroup is not: the next run starts in a thawed one. *soon*
    where the store may have it a moment later: its facts and exit.json tell it until then.
    """
    facts = seen.facts
    if facts is None or seen.end is None:
        raise AssertionError("an end has facts and a verdict")
    if frozen:
        _thaw(context, seen.row)
    end = verdict.encode(seen.end)
    told = State.CONFIGURED.value
    event = ("ended", f'{{"state":"{told}","end":{end}}}')
    if soon:
        row = context.store.note_end(seen.row, end, event, told=told)
    else:
        changes: Changes = {"desired": told, "run_count": facts.run, "end": end}
        if facts.intent == "stop" and (facts.stop is None or facts.stop.by_operator):
            changes |= NOT_WANTED
        row = context.store.update(seen.row.uuid, event=event, told=told, **changes)
    failpoint("end.stored")
    noted = _without_application(facts)
    if not soon:
        boot.write_facts(context.paths, row.uuid, noted)
        if facts.intent == "stop":
            boot.finish(context.paths, row.uuid)
    return Observed(row, State.CONFIGURED, noted, seen.end)


def _noted(context: Context, seen: Observed, state: State) -> Observed:
    end = None if seen.end is None else verdict.encode(seen.end)
    kind = "lost" if seen.event is Event.INIT_LOST else "cleaned"
    changes: Changes = {"desired": state.value, "end": end}
    if seen.row.boot_id != boot.boot_id():
        changes["retry"] = None  # What was planned ended with that boot.
    row = context.store.update(
        seen.row.uuid,
        event=(kind, f'{{"state":"{state.value}","end":{end or "null"}}}'),
        told=state.value,
        **changes,
    )
    return Observed(row, state, None, seen.end)


def _with_state(
    context: Context, seen: Observed, state: State, *, shown: State | None = None
) -> Observed:
    # PAUSED is *shown*, and noted nowhere.
    told = shown or state
    if seen.facts is None:
        raise AssertionError("only a configured instance has a state to correct")
    facts = msgspec.structs.replace(
        seen.facts, state=state.value, intent=None, stop=None, limits=None
    )
    boot.write_facts(context.paths, seen.row.uuid, facts)
    boot.finish(context.paths, seen.row.uuid)
    # Whoever began it did not live to tell.
    data = f'{{"state":"{told.value}"}}'
    context.store.note(seen.row.uuid, "settled", data, told=told.value)
    return Observed(seen.row, told, facts, seen.end)


def _thaw(context: Context, row: Row) -> None:
    try:
        context.cgroup(row.uuid).thaw()
    except FileNotFoundError:
        pass  # Removed from outside: nothing in it is frozen.


def _after_run(context: Context, seen: Observed) -> Observed:
    # Whoever ran it died between asking init and noting the answer. Init knows.
    facts = seen.facts
    if facts is None:
        raise AssertionError("an intent stands in facts")
    deadline = time.monotonic() + RESTORE_TIMEOUT_S
    try:
        # What is to become the application is CRIU itself until it has ended.
        while (status := _status(context, seen.row)) and status.get("restores"):
            if time.monotonic() > deadline:
                status = None
                break
            time.sleep(_RESTORE_AGAIN_S)
    except FileNotFoundError:
        release.everything(context, seen.row, facts)
        lost = Observed(seen.row, State.DEFINED, facts, verdict.init_lost(None))
        return _noted(context, lost, State.DEFINED)
    if status is None:
        late = TimeoutError(110, "its init does not answer")
        raise StepError(seen.row.name, "run", late, code=Code.RUN)
    if status["state"] == "idle" and (ended := _told(status, facts)) is not None:
        # Nobody noted that it was not executed, or how soon it ended.
        return application_ended(context, _ended(context, seen.row, facts, ended))
    if status["state"] == "idle" or status.get("run") != facts.run:
        if seen.row.desired != State.CONFIGURED.value:
            row = context.store.update(seen.row.uuid, desired=State.CONFIGURED.value)
            seen = msgspec.structs.replace(seen, row=row)
        return _with_state(context, seen, State.CONFIGURED)
    details = facts.details | {"pid": status.get("host_pid"), "start": status["start"]}
    running = msgspec.structs.replace(facts, started_at=status["started_at"], details=details)
    return _with_state(context, Observed(seen.row, seen.state, running, None), State.RUNNING)


def put_back_limits(context: Context, row: Row, before: str) -> Row:
    """Undo a scale: every limit is as it was *before*, which is as the store has limits."""
    limits = limits_of.decode(before)
    if limits is not None:
        try:
            context.cgroup(row.uuid).apply(limits)
        except FileNotFoundError:
            pass  # Removed from outside: there is nothing to limit.
    return row if row.limits == before else context.store.update(row.uuid, limits=before)
