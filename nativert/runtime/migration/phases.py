"""What a phase of a migration looks like in the state table."""

from __future__ import annotations

from nativert.fdu.states import WITH_APPLICATION, State
from nativert.store import moves
from nativert.store.moves import Phase


def shown(state: State, moving: str) -> State:
    """Return the state of an instance that is on its way and which this node has in *state*."""
    move = moves.decode(moving)
    if move is None:
        return state
    if move.phase is Phase.PREPARING:
        # One that has ended by itself does not move any more.
        return State.MIGRATING if state in WITH_APPLICATION else state
    if move.leaves:
        return State.TAKE_OFF
    if move.phase is Phase.LANDING and state is not State.CONFIGURED:
        return State.MIGRATING
    return State.LANDING
