"""What supervision does to one instance: each act holds its lock and asks anew what is wanted.

What becomes of an end follows from the durable record alone: the end, what an operator wants,
and what was decided before. So whoever looks next, after any crash, comes to the same answer,
and two who look at once do it once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from nativert.errors import NativertError
from nativert.fdu import restart
from nativert.fdu.restart import Retry
from nativert.fdu.states import WITH_APPLICATION, Operation, State
from nativert.runtime import edges, verdict
from nativert.runtime import pause as pauses
from nativert.runtime import run as runs
from nativert.runtime.context import Context, descriptor_of
from nativert.runtime.failpoints import failpoint
from nativert.runtime.observe import Observed, observe
from nativert.runtime.views import End
from nativert.store.durable import Row

if TYPE_CHECKING:
    from nativert.runtime.node import Node

_AT_BOOT = ("node-rebooted", "node-shutdown")


def waits(row: Row) -> bool:
    """Tell whether an end of *row* is to be followed by another start, or may be."""
    if row.wanted != State.RUNNING.value:
        return False
    end, retry = verdict.decode(row.end), restart.decode(row.retry)
    if _after_boot(row, end):
        return retry is not None and retry.run == row.run_count and retry.at is not None
    if descriptor_of(row.descriptor, row.name).native.restart.policy == "never":
        return False
    return retry is None or retry.run != row.run_count or retry.at is not None


def log_goes_on(context: Context, uuid: str) -> bool:
    """Tell whether the log of an instance may still grow: it runs, or is to be started again."""
    try:
        seen = observe(context, context.store.get(uuid))
    except NativertError:
        return False  # Undefined meanwhile.
    return seen.state in WITH_APPLICATION or waits(seen.row)


def left_alone(row: Row) -> bool:
    """Tell whether one that does not run is not to be started for another's sake.

    It waits for a start of its own, has given up, or an operator has stopped it.
    """
    retry = restart.decode(row.retry)
    if row.wanted != State.RUNNING.value:
        end = verdict.decode(row.end)
        # A start that has failed leaves the wish as it was before.
        return row.run_count > 0 and (end is None or end.reason != "exec-failed")
    return waits(row) or (retry is not None and retry.run == row.run_count and retry.gave_up)


def _after_boot(row: Row, end: End | None) -> bool:
    """Tell whether it is not there because the node was shut down or rebooted.

    One that had ended before keeps that end, but has lost its sandbox.
    """
    if end is None or end.reason in _AT_BOOT:
        return end is not None
    return row.desired == State.DEFINED.value and end.reason != "init-lost"


def failed(end: End) -> bool:
    """Tell whether an end is one that the policy on-failure starts again after."""
    return end.reason != "exited" or end.exit_code != 0


def decide(
    node: Node, uuid: str, *, healthy_s: float, now: float, anew: bool = False
) -> Retry | None:
    """Decide what becomes of the last end and note it; None where nothing is to be decided.

    *anew*: an attempt has failed before there was a run, which counts as an end.
    """
    row = node.context.store.get(uuid)
    known = restart.decode(row.retry)
    if known is not None and known.run == row.run_count and not anew:
        return known if row.wanted == State.RUNNING.value else None
    decided: list[Retry] = []

    def act(seen: Observed) -> Observed:
        row, end = seen.row, seen.end
        if row.wanted != State.RUNNING.value or seen.state not in (State.CONFIGURED, State.DEFINED):
            return seen
        native = descriptor_of(row.descriptor, row.name).native
        if end is None and not anew:
            # Its start was interrupted, or an operator has configured it again.
            if native.restart.policy != "never" or native.autostart:
                decided.append(Retry(run=row.run_count, at=now))
            return seen
        before = restart.decode(row.retry)
        if not anew and _after_boot(row, end):
            if native.autostart:
                decided.append(Retry(run=row.run_count, at=now))
            return seen
        if anew and before is not None:
            before = msgspec.structs.replace(before, run=-1)
        retry = restart.decide(
            native.restart,
            before,
            run=row.run_count,
            failed=anew or end is None or failed(end),
            healthy_s=healthy_s,
            now=now,
            chance=random.random(),  # noqa: S311 (it spreads load, and hides nothing)
        )
        decided.append(retry)
        if retry == before or (native.restart.policy == "never" and not anew):
            return seen
        data: dict[str, object] = {"at": retry.at, "attempt": retry.failures}
        kind = "restart-planned"
        if retry.at is None:
            kind, data = "gave-up" if retry.gave_up else "rests", {"reason": retry.reason}
        row = node.context.store.update(
            row.uuid, retry=restart.encode(retry), event=(kind, edges.encode(data))
        )
        failpoint("restart.decided")
        return msgspec.structs.replace(seen, row=row)

    node.operate(uuid, None, act, quiet=True)
    return decided[0] if decided else None


def start_again(node: Node, uuid: str, unless: Callable[[], bool]) -> bool:
    """Configure and start what is wanted RUNNING and is not; False if it is not wanted now.

    *unless* is asked under its lock: who ends all instances must not be followed by a start.
    """
    from nativert.runtime.configure import configure

    started = False

    def act(seen: Observed) -> Observed:
        nonlocal started
        row = seen.row
        if row.wanted != State.RUNNING.value or unless():
            return seen
        # Before configure, which begins them anew.
        retry, restarts, env = row.retry, row.restarts, row.env
        if seen.state is State.DEFINED:
            seen = configure(node.context, seen)
            edges.tell(node.context, Operation.CONFIGURE, seen)
            failpoint("restart.configured")
            if unless():
                return seen
        elif seen.state is not State.CONFIGURED:
            return seen
        known = restart.decode(retry)
        if known is not None:
            known = msgspec.structs.replace(known, at=None)
        given: dict[str, str] | None = None if env is None else msgspec.json.decode(env)
        after = runs.run(
            node.context,
            seen,
            env=given,
            again={
                "restarts": restarts + 1,
                "retry": None if known is None else restart.encode(known),
            },
        )
        edges.tell(node.context, Operation.RUN, after)
        started = True
        return after

    node.operate(uuid, None, act, quiet=True)
    return started


def withdraw(context: Context, seen: Observed) -> Observed | None:
    """Take back the wish that one which has ended and waits runs; None if it does not wait."""
    if seen.state not in (State.CONFIGURED, State.DEFINED) or not waits(seen.row):
        return None
    data = edges.encode({"state": seen.state.value})
    row = context.store.update(
        seen.row.uuid, wanted=seen.state.value, retry=None, event=("withdrawn", data)
    )
    return msgspec.structs.replace(seen, row=row)


def stop_unhealthy(node: Node, uuid: str, run: int, note: str) -> None:
    """Stop the run that a health check has failed; the policy then decides."""

    def act(seen: Observed) -> Observed:
        if seen.state is not State.RUNNING or seen.facts is None or seen.facts.run != run:
            return seen
        return runs.stop(node.context, seen, why="health", note=note)

    node.operate(uuid, None, act, quiet=True)


def shut_down(node: Node, uuid: str, note: str) -> None:
    """Stop with signal and grace, a frozen one too; what is wanted of it stays."""

    def act(seen: Observed) -> Observed:
        if seen.state is State.PAUSED:
            seen = pauses.resume(node.context, seen)
        if seen.state is not State.RUNNING:
            return seen
        return runs.stop(node.context, seen, why="shutdown", note=note)

    node.operate(uuid, None, act, quiet=True)


def no_dependency(node: Node, uuid: str, note: str) -> None:
    """Note that it was not started, because what it depends on is not there."""

    def act(seen: Observed) -> Observed:
        if seen.state not in (State.CONFIGURED, State.DEFINED):
            return seen
        end = verdict.dependency_failed(note)
        text = verdict.encode(end)
        row = node.context.store.update(
            seen.row.uuid, end=text, event=("dependency-failed", edges.encode({"message": note}))
        )
        return msgspec.structs.replace(seen, row=row, end=end)

    node.operate(uuid, None, act, quiet=True)


def make_up(node: Node) -> int:
    """Tell the states that no event has told, because its writer died; return how many."""
    store = node.context.store
    store.flush()
    told, count = store.told(), 0
    for row in store.rows():
        if row.corrupt:
            continue
        try:
            seen = node.look(row.uuid)
        except NativertError:
            continue  # Undefined meanwhile.
        if seen.state.value != told.get(row.uuid) and store.told().get(row.uuid) == told[row.uuid]:
            data: dict[str, Any] = {"state": seen.state.value, "before": told[row.uuid]}
            data["made_up"] = True
            store.note(row.uuid, "state", edges.encode(data), told=seen.state.value)
            count += 1
    return count


def seconds_left(row: Row, now: float | None = None) -> float | None:
    """Return the seconds until the next attempt, None where there is none."""
    retry = restart.decode(row.retry)
    if retry is None or not waits(row):
        return None
    return restart.left_s(retry, time.time() if now is None else now)
