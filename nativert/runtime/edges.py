"""The events of the node: which kind each operation tells, and with what.

Kinds: docs/operation.md. Every edge of the state table is one event, and so is every refusal.
Edges that are committed anyway carry theirs in that commit; the others are written a moment
later, in order, because a commit takes longer than a pause.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from nativert.errors import NativertError, TransitionError
from nativert.fdu.states import Operation, State
from nativert.runtime.context import Context
from nativert.runtime.observe import Observed
from nativert.runtime.views import Event
from nativert.store import durable
from nativert.store.durable import Row

# Of the others, define and undefine stand in their own commits and stop in the end's.
_KINDS: Final = {
    Operation.CONFIGURE: "configured",
    Operation.CLEAN: "cleaned",
    Operation.RUN: "started",
    Operation.PAUSE: "paused",
    Operation.RESUME: "resumed",
    Operation.SCALE: "scaled",
}


def encode(data: dict[str, object]) -> str:
    """Return the data of an event as the store keeps it."""
    return msgspec.json.encode(data).decode()


def tell(context: Context, operation: Operation | None, after: Observed) -> None:
    """Tell the edge that *operation* has taken to *after*; written when the store is woken."""
    if operation is Operation.STOP and after.state is State.RUNNING:
        operation = Operation.RUN  # A restart: its end is told.
    if operation is None or (kind := _KINDS.get(operation)) is None:
        return
    told = after.state.value
    data: dict[str, object] = {"state": told}
    if operation is Operation.RUN and after.facts is not None:
        data |= {"pid": after.facts.details.get("pid"), "run": after.facts.run}
    elif operation is Operation.SCALE and after.row.limits is not None:
        data["limits"] = msgspec.Raw(after.row.limits.encode())
    context.store.note(after.row.uuid, kind, encode(data), told=told, wake=False)


def refuse(context: Context, row: Row, operation: Operation | str, error: NativertError) -> None:
    """Tell that an operation was refused, or has failed and left everything as it was."""
    kind = "refused" if isinstance(error, TransitionError) else "failed"
    data: dict[str, object] = {
        "operation": operation if isinstance(operation, str) else operation.value,
        "code": error.code.word,
        "message": error.message,
    }
    context.store.note(row.uuid, kind, encode(data))


def view(event: durable.Event) -> Event:
    """Return an event of the store as everybody above sees it."""
    data: dict[str, Any] = msgspec.json.decode(event.json)
    return Event(
        seq=event.seq,
        time=event.time,
        instance=event.instance,
        name=event.name,
        kind=event.kind,
        data=data,
    )
