"""The true state of an instance: what was noted, held against what the kernel says.

Looking changes nothing. `settle` (under the instance's lock) carries out the events of
the state machine that looking found: an end that nobody saw, an init that is gone, an
operation that its process did not live to finish.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from nativert.fdu.states import Event, State, next_state
from nativert.isolation import process
from nativert.launcher.client import Channel, ReportedError
from nativert.launcher.protocol import INIT_SOCKET
from nativert.runtime import limits as limits_of
from nativert.runtime import release, verdict
from nativert.runtime.context import Context
from nativert.runtime.views import End
from nativert.store import boot
from nativert.store.boot import Facts
from nativert.store.durable import Row


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at an instance. `event` has happened and is not yet noted."""

    row: Row
    state: State
    facts: Facts | None
    end: End | None
    event: Event | None = None


def observe(context: Context, row: Row) -> Observed:
    """Return the state of *row* by evidence: boot id, init's pid and start time, exit.json."""
    facts = boot.read_facts(context.paths, row.uuid)
    end = verdict.decode(row.end)
    if facts is None:
        if row.desired == State.DEFINED.value:
            return Observed(row, State.DEFINED, None, end)
        rebooted = row.boot_id != boot.boot_id()
        reason = verdict.node_rebooted() if rebooted else verdict.init_lost(None)
        return Observed(row, State.DEFINED, None, reason, Event.INIT_LOST)
    state = State(facts.state)
    if state is State.DEFINED:
        return Observed(row, state, facts, end)
    if state in _WITH_APPLICATION or facts.intent == "run":
        ended = boot.read_exit(context.paths, row.uuid)
        if ended is not None and ended.run == facts.run:
            told = verdict.of_exit(
                ended, stopping=facts.intent == "stop", memory_max=_memory_max(row)
            )
            after = Event.APPLICATION_ENDED if state in _WITH_APPLICATION else None
            return Observed(row, State.CONFIGURED, facts, told, after)
    if not process.alive(facts.init_pid, facts.init_start):
        lost = verdict.init_lost(facts.started_at)
        return Observed(row, next_state(state, Event.INIT_LOST), facts, lost, Event.INIT_LOST)
    if state is State.SCALING:
        return Observed(row, state, facts, end, Event.SCALE_INTERRUPTED)
    return Observed(row, state, facts, end)


_WITH_APPLICATION = (State.RUNNING, State.PAUSED, State.SCALING)


def _memory_max(row: Row) -> int | None:
    limits = limits_of.decode(row.limits)
    return None if limits is None else limits.memory_max


def settle(context: Context, row: Row) -> Observed:
    """Note what has happened and finish or undo what was interrupted; holds the lock.

    Returns the state from which an operation may start.
    """
    seen = observe(context, row)
    facts = seen.facts
    if facts is None:
        if seen.event is None:
            return seen
        return _noted(context, seen, State.DEFINED)
    if seen.event is Event.INIT_LOST or facts.intent in ("configure", "clean"):
        # What configure had made goes; what clean had left goes too.
        release.everything(context, row, facts)
        return _noted(context, seen, State.DEFINED)
    if seen.event is Event.APPLICATION_ENDED or (facts.intent == "run" and seen.end is not None):
        return application_ended(context, seen)
    if facts.intent == "run":
        return _after_run(context, seen)
    if seen.state is State.SCALING:
        return _after_scale(context, seen)
    if facts.intent in ("pause", "resume"):
        frozen = context.driver.open(facts.cgroup).frozen()
        state = State.PAUSED if frozen else State.RUNNING
        if not frozen:
            # A freeze that was under way must not take hold later.
            context.driver.open(facts.cgroup).thaw()
        return _with_state(context, seen, state)
    if facts.intent is not None:
        return _with_state(context, seen, seen.state)
    return seen


def application_ended(context: Context, seen: Observed) -> Observed:
    """Note the end of the application: the instance is CONFIGURED, with the reason kept."""
    facts = seen.facts
    if facts is None or seen.end is None:
        raise AssertionError("an end has facts and a verdict")
    if facts.state == State.PAUSED.value:
        # Killed while frozen: the next run starts in a cgroup that is thawed.
        context.driver.open(facts.cgroup).thaw()
    row = context.store.update(
        seen.row.uuid,
        desired=State.CONFIGURED.value,
        end=verdict.encode(seen.end),
        event=("ended", verdict.encode(seen.end)),
    )
    noted = msgspec.structs.replace(
        facts, state=State.CONFIGURED.value, intent=None, started_at=None
    )
    boot.write_facts(context.paths, row.uuid, noted)
    return Observed(row, State.CONFIGURED, noted, seen.end)


def _noted(context: Context, seen: Observed, state: State) -> Observed:
    end = None if seen.end is None else verdict.encode(seen.end)
    row = context.store.update(seen.row.uuid, desired=state.value, end=end)
    return Observed(row, state, None, seen.end)


def _with_state(context: Context, seen: Observed, state: State) -> Observed:
    if seen.facts is None:
        raise AssertionError("only a configured instance has a state to correct")
    facts = msgspec.structs.replace(seen.facts, state=state.value, intent=None)
    boot.write_facts(context.paths, seen.row.uuid, facts)
    return Observed(seen.row, state, facts, seen.end)


def _after_run(context: Context, seen: Observed) -> Observed:
    # Whoever ran it died between asking init and noting the answer. Init knows.
    facts = seen.facts
    if facts is None:
        raise AssertionError("an intent stands in facts")
    try:
        with Channel(context.paths.instance_run(seen.row.uuid), INIT_SOCKET) as channel:
            status, _ = channel.call({"verb": "status"})
    except (OSError, EOFError, ReportedError):
        return _with_state(context, seen, State.CONFIGURED)
    if status["state"] == "idle" or status.get("run") != facts.run:
        return _with_state(context, seen, State.CONFIGURED)
    running = msgspec.structs.replace(facts, started_at=status["started_at"])
    return _with_state(context, Observed(seen.row, seen.state, running, seen.end), State.RUNNING)


def _after_scale(context: Context, seen: Observed) -> Observed:
    if seen.facts is None:
        raise AssertionError("SCALING stands in facts")
    before = limits_of.decode(seen.row.limits)
    if before is not None:
        context.driver.open(seen.facts.cgroup).apply(before)
    return _with_state(context, seen, State.RUNNING)
