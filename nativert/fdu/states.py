"""The state machine of an FDU: one table, from which everything else is read.

The checks, the diagram and the exhaustive test use `TABLE` and nothing else. ERROR is not in it:
it is a report (status of a record), never a state.
"""

from __future__ import annotations

import enum
import itertools
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from nativert.errors import DescriptorError, TransitionError

Format = Literal["text", "mermaid", "dot"]


class State(enum.Enum):
    """Where an instance is; the value is the spelling of the fog05 documentation."""

    UNDEFINED = "UNDEFINED"
    DEFINED = "DEFINED"
    CONFIGURED = "CONFIGURED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SCALING = "SCALING"
    MIGRATING = "MIGRATING"
    TAKE_OFF = "TAKE_OFF"
    LANDING = "LANDING"

    # There is one object for each; Enum's own hash is two more calls at every look-up.
    __hash__ = object.__hash__

    @property
    def wire(self) -> str:
        """The word that fog05 puts into the status of a record."""
        return _WIRE[self]

    @classmethod
    def from_wire(cls, word: str) -> State:
        """The state behind a status; raises `DescriptorError` for any other word."""
        for state, wire in _WIRE.items():
            if wire == word:
                return state
        accepted = ", ".join(_WIRE.values())
        raise DescriptorError("status", f"cannot be {word!a}: expected one of {accepted}")


# In these there is an application, which may end or be lost.
WITH_APPLICATION: Final = (State.RUNNING, State.PAUSED, State.SCALING)

_WIRE: Final = {
    State.UNDEFINED: "UNDEFINE",
    State.DEFINED: "DEFINE",
    State.CONFIGURED: "CONFIGURE",
    State.RUNNING: "RUN",
    State.PAUSED: "PAUSE",
    State.SCALING: "SCALE",
    State.MIGRATING: "MIGRATE",
    State.TAKE_OFF: "TAKE_OFF",
    State.LANDING: "LAND",
}


class Operation(enum.Enum):
    """What somebody asks for. A migration is `migrate` at its source, `land` at its destination."""

    DEFINE = "define"
    UNDEFINE = "undefine"
    CONFIGURE = "configure"
    CLEAN = "clean"
    RUN = "run"
    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"
    SCALE = "scale"
    MIGRATE = "migrate"
    LAND = "land"

    __hash__ = object.__hash__


class Event(enum.Enum):
    """What happens without being asked for."""

    APPLICATION_ENDED = "application-ended"
    FORCED_REMOVAL = "forced-removal"
    INIT_LOST = "init-lost"  # or the node rebooted: either way nothing of the sandbox is left
    SCALE_INTERRUPTED = "scale-interrupted"
    MIGRATION_FAILED = "migration-failed"
    LANDING_FAILED = "landing-failed"


Action = Operation | Event


class Row(NamedTuple):
    """One line of the table: from any of `sources`, `through` these in order, `to` that."""

    action: Action
    sources: tuple[State, ...]
    through: tuple[State, ...]
    to: State


TABLE: Final = (
    Row(Operation.DEFINE, (State.UNDEFINED,), (), State.DEFINED),
    Row(Operation.UNDEFINE, (State.DEFINED,), (), State.UNDEFINED),
    Row(Operation.CONFIGURE, (State.DEFINED,), (), State.CONFIGURED),
    Row(Operation.CLEAN, (State.CONFIGURED,), (), State.DEFINED),
    Row(Operation.RUN, (State.CONFIGURED,), (), State.RUNNING),
    Row(Operation.STOP, (State.RUNNING,), (), State.CONFIGURED),
    Row(Operation.PAUSE, (State.RUNNING,), (), State.PAUSED),
    Row(Operation.RESUME, (State.PAUSED,), (), State.RUNNING),
    Row(Operation.SCALE, (State.RUNNING,), (State.SCALING,), State.RUNNING),
    Row(
        Operation.MIGRATE,
        (State.RUNNING,),
        (State.MIGRATING, State.TAKE_OFF),
        State.UNDEFINED,
    ),
    Row(
        Operation.LAND,
        (State.UNDEFINED,),
        (State.MIGRATING, State.LANDING),
        State.RUNNING,
    ),
    Row(
        Event.APPLICATION_ENDED,
        (State.RUNNING, State.PAUSED, State.SCALING, State.MIGRATING, State.TAKE_OFF),
        (),
        State.CONFIGURED,
    ),
    Row(Event.FORCED_REMOVAL, (State.PAUSED,), (), State.CONFIGURED),
    Row(
        Event.INIT_LOST,
        (
            State.CONFIGURED,
            State.RUNNING,
            State.PAUSED,
            State.SCALING,
            State.MIGRATING,
            State.TAKE_OFF,
        ),
        (),
        State.DEFINED,
    ),
    Row(Event.INIT_LOST, (State.LANDING,), (), State.UNDEFINED),
    Row(Event.SCALE_INTERRUPTED, (State.SCALING,), (), State.RUNNING),
    Row(Event.MIGRATION_FAILED, (State.MIGRATING, State.TAKE_OFF), (), State.RUNNING),
    Row(Event.LANDING_FAILED, (State.MIGRATING, State.LANDING), (), State.UNDEFINED),
)

TRANSITIONS: Final = MappingProxyType(
    {(source, row.action): row for row in TABLE for source in row.sources}
)

# It is another node that asks for it.
_NOT_OFFERED: Final = frozenset({Operation.LAND})


def next_state(state: State, action: Action) -> State:
    """The state in which `action` ends; raises `TransitionError` if the table has no such edge."""
    return _row(state, action).to


def through(state: State, action: Action) -> tuple[State, ...]:
    """The states in between, in order; raises `TransitionError` as `next_state` does."""
    return _row(state, action).through


def allowed(state: State) -> tuple[str, ...]:
    """The operations that can be asked for in `state`, in the order of the table."""
    return tuple(
        row.action.value
        for row in TABLE
        if state in row.sources
        and isinstance(row.action, Operation)
        and row.action not in _NOT_OFFERED
    )


def render(format: Format = "text") -> str:  # noqa: A002 (the name of the command's option)
    """The table as aligned text, or its diagram for Mermaid or Graphviz."""
    if format == "mermaid":
        return _mermaid()
    if format == "dot":
        return _dot()
    return _text()


def _row(state: State, action: Action) -> Row:
    try:
        return TRANSITIONS[state, action]
    except KeyError:
        raise TransitionError(action.value, state.value, allowed(state)) from None


def _text() -> str:
    lines = [("ACTION", "FROM", "THROUGH", "TO")]
    lines += [
        (
            row.action.value,
            ", ".join(source.value for source in row.sources),
            ", ".join(state.value for state in row.through) or "-",
            row.to.value,
        )
        for row in TABLE
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join(padded) + "\n"


def _arrows() -> dict[tuple[State, State], list[Action]]:
    """Single steps of the diagram with the actions that take them."""
    arrows: dict[tuple[State, State], list[Action]] = {}
    for (source, action), row in TRANSITIONS.items():
        chain = (source, *row.through, row.to)
        for step in itertools.pairwise(chain):
            taken_by = arrows.setdefault(step, [])
            if action not in taken_by:
                taken_by.append(action)
    return arrows


def _mermaid() -> str:
    lines = ["stateDiagram-v2", f"    [*] --> {State.UNDEFINED.value}"]
    lines += [
        f"    {source.value} --> {to.value}: {', '.join(action.value for action in actions)}"
        for (source, to), actions in _arrows().items()
    ]
    return "\n".join(lines) + "\n"


def _dot() -> str:
    lines = ["digraph fdu {", "    rankdir=LR;", "    node [shape=box, style=rounded];"]
    for (source, to), actions in _arrows().items():
        for kind, style in ((Operation, "solid"), (Event, "dashed")):
            label = ", ".join(action.value for action in actions if isinstance(action, kind))
            if label:
                lines.append(f'    {source.value} -> {to.value} [label="{label}", style={style}];')
    return "\n".join([*lines, "}"]) + "\n"
