"""What becomes of a move whose process is gone; the caller holds the instance's lock.

Whoever moves an instance holds its lock, so a move that is found under it is nobody's any more.
Before the commit it is taken back at the source, whose application runs as if nothing had
happened; after it the destination starts the instance, or gives it back.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address

import msgspec

from nativert.errors import NativertError, StepError
from nativert.fdu.states import State
from nativert.runtime import edges, release
from nativert.runtime.context import Context
from nativert.runtime.failpoints import failpoint
from nativert.runtime.migration import live
from nativert.runtime.observe import Observed, observe, settle_here
from nativert.store import moves
from nativert.store.durable import Row
from nativert.store.moves import Fence, Move, Outcome, Phase

_OURS = ("stopped", "stop-timeout")
_APPLICATION = (State.RUNNING, State.PAUSED)


class NotStartedError(NativertError):
    """What has landed cannot be started here; nothing of it is left, and it is given back."""


def move_of(row: Row) -> Move:
    """Return the move of a row that has one."""
    move = moves.decode(row.moving)
    if move is None:
        raise AssertionError(f"{row.name} is not on its way")
    return move


def fence(move: Move, outcome: Outcome) -> Fence:
    """Return how *move* went out."""
    return Fence(epoch=move.epoch, outcome=outcome, peer=move.peer)


def enter(context: Context, row: Row, phase: Phase) -> Row:
    """Note the next phase of a move, and tell of it where that is another state."""
    before = observe(context, row).state
    moving = moves.encode(msgspec.structs.replace(move_of(row), phase=phase))
    event = told = None
    after = observe(context, msgspec.structs.replace(row, moving=moving)).state
    if after is not before:
        told = after.value
        data = edges.encode({"state": told, "peer": move_of(row).peer})
        event = ("taking-off", data)
    return context.store.update(row.uuid, moving=moving, event=event, told=told)


def settle_moving(context: Context, row: Row) -> Observed:
    """Finish or undo what a dead process has left of a move."""
    move = move_of(row)
    if move.phase is Phase.COMMITTED:
        # It is the destination's; `Mover.deliver` says so until it hears.
        return observe(context, row)
    if move.leaves:
        return take_back(context, row, "whoever moved it is gone")
    here = settle_here(context, row)
    if move.phase is Phase.STARTING:
        try:
            return start(context, here.row)
        except NotStartedError:
            return Observed(here.row, State.UNDEFINED, None, None)
    if move.phase is Phase.LANDING and here.state is not State.CONFIGURED:
        return abandon(context, here.row, "its preparation was interrupted")
    return observe(context, here.row)


def take_back(context: Context, row: Row, reason: str) -> Observed:
    """End a move at its source: what was stopped for it runs again."""
    here = settle_here(context, row)
    row, move = here.row, move_of(row)
    if live.wanted(row) and move.phase is not Phase.PREPARING:
        here = live.go_on(context, here)
    stopped = here.state is State.CONFIGURED and move.phase is not Phase.PREPARING
    asked = here.end is None or here.end.reason in _OURS
    if stopped and (asked or move.phase is Phase.ABORTING):
        row = enter(context, row, Phase.ABORTING)
        failpoint("migrate.aborting")
        here = _again(context, msgspec.structs.replace(here, row=row))
        row = here.row
        failpoint("migrate.back")
    data: dict[str, object] = {"state": here.state.value, "peer": move.peer, "message": reason}
    row = context.store.update(
        row.uuid,
        moving=None,
        fence=fence(move, Outcome.ABANDONED),
        event=("migration-failed", edges.encode(data)),
        told=here.state.value,
    )
    return msgspec.structs.replace(here, row=row)


def _again(context: Context, here: Observed) -> Observed:
    try:
        return _run(context, here)
    except NativertError as e:
        after = settle_here(context, context.store.get(here.row.uuid))
        failed = after.end is not None and after.end.reason == "exec-failed"
        if after.state in _APPLICATION or after.state is State.DEFINED or failed:
            return after
        # It stays to be started: a full disk may have room again at the next look.
        raise StepError(here.row.name, "migrate", e, code=e.code, hint=e.hint) from e


def _run(context: Context, here: Observed) -> Observed:
    from nativert.runtime import run as runs

    row = here.row
    env: dict[str, str] | None = None if row.env is None else msgspec.json.decode(row.env)
    # Not an operator's start: what was wanted stays, and how often it was started.
    return runs.run(context, here, env=env, again={"wanted": State.RUNNING.value})


def start(context: Context, row: Row) -> Observed:
    """Start what has landed; NotStartedError where that fails, and then nothing is left of it."""
    from nativert.runtime.configure import configure

    move = move_of(row)
    try:
        here = settle_here(context, row)
        if here.state is State.DEFINED:
            here = configure(context, here)
        if here.state is State.CONFIGURED:
            waits = live.waits(context, row.uuid)
            here = live.restore(context, here) if waits else _run(context, here)
            failpoint("land.started")
    except NativertError as e:
        here = settle_here(context, context.store.get(row.uuid))
        if here.state not in _APPLICATION:
            forget(context, here.row, Outcome.GIVEN_BACK, e.message)
            raise NotStartedError(e.message, code=e.code, hint=e.hint) from e
    live.forget(context, row.uuid)
    row = context.store.update(
        row.uuid,
        moving=None,
        fence=fence(move, Outcome.LANDED),
        event=("landed", edges.encode({"state": here.state.value, "peer": move.peer})),
        told=here.state.value,
    )
    return msgspec.structs.replace(here, row=row)


def give_up(context: Context, row: Row) -> Observed:
    """Remove a copy on an operator's word, whatever the other node has."""
    given = move_of(row).phase is Phase.COMMITTED
    outcome = Outcome.GIVEN if given else Outcome.ABANDONED
    return forget(context, row, outcome, "removed by force")


def abandon(context: Context, row: Row, reason: str) -> Observed:
    """End a move at its destination before the commit: nothing of it is left."""
    return forget(context, row, Outcome.ABANDONED, reason)


def forget(
    context: Context,
    row: Row,
    outcome: Outcome,
    reason: str = "",
    *,
    taken: Collection[str] | None = None,
) -> Observed:
    """Remove the copy of this node with all that it has; its fence stays.

    What is given has *taken* these addresses along; where nobody says, it may have all of them.
    """
    from nativert.store import boot

    move = move_of(row)
    release.everything(context, row, boot.read_facts(context.paths, row.uuid))
    release.data(context, row)
    failpoint("move.removed")
    kind = "migrated" if outcome is Outcome.GIVEN else "migration-failed"
    data: dict[str, object] = {"state": State.UNDEFINED.value, "peer": move.peer, "message": reason}
    lend = [
        interface.address
        for interface in row.interfaces
        if outcome is Outcome.GIVEN
        and IPv4Address(interface.address) in context.identity.subnet
        and (taken is None or interface.address in taken)
    ]
    context.store.delete(
        row.uuid, event=(kind, edges.encode(data)), fence=fence(move, outcome), lend=lend
    )
    return Observed(row, State.UNDEFINED, None, None)
