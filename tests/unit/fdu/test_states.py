from __future__ import annotations

import itertools

import pytest

from nativert.errors import Code, DescriptorError, TransitionError
from nativert.fdu.states import (
    TABLE,
    TRANSITIONS,
    Action,
    Event,
    Operation,
    State,
    allowed,
    next_state,
    render,
    through,
)

# Written down a second time on purpose: from, action, the states in between, to.
EDGES = """
UNDEFINED define - DEFINED
DEFINED undefine - UNDEFINED
DEFINED configure - CONFIGURED
CONFIGURED clean - DEFINED
CONFIGURED run - RUNNING
RUNNING stop - CONFIGURED
RUNNING pause - PAUSED
PAUSED resume - RUNNING
RUNNING scale SCALING RUNNING
RUNNING migrate MIGRATING,TAKE_OFF UNDEFINED
UNDEFINED land MIGRATING,LANDING RUNNING
RUNNING application-ended - CONFIGURED
PAUSED application-ended - CONFIGURED
SCALING application-ended - CONFIGURED
MIGRATING application-ended - CONFIGURED
TAKE_OFF application-ended - CONFIGURED
PAUSED forced-removal - CONFIGURED
CONFIGURED init-lost - DEFINED
RUNNING init-lost - DEFINED
PAUSED init-lost - DEFINED
SCALING init-lost - DEFINED
MIGRATING init-lost - DEFINED
TAKE_OFF init-lost - DEFINED
LANDING init-lost - UNDEFINED
SCALING scale-interrupted - RUNNING
MIGRATING migration-failed - RUNNING
TAKE_OFF migration-failed - RUNNING
MIGRATING landing-failed - UNDEFINED
LANDING landing-failed - UNDEFINED
"""
EXPECTED = {
    (source, action): (tuple(between.split(",")) if between != "-" else (), to)
    for source, action, between, to in (line.split() for line in EDGES.strip().splitlines())
}
ACTIONS: tuple[Action, ...] = (*Operation, *Event)


@pytest.mark.parametrize(
    ("state", "action"),
    list(itertools.product(State, ACTIONS)),
    ids=lambda member: member.value,
)
def test_every_state_with_every_operation_and_event(state: State, action: Action) -> None:
    edge = EXPECTED.get((state.value, action.value))
    if edge is None:
        with pytest.raises(TransitionError) as caught:
            next_state(state, action)
        assert caught.value.code is Code.TRANSITION
        assert caught.value.allowed == allowed(state)
        assert state.value in str(caught.value)
        with pytest.raises(TransitionError):
            through(state, action)
    else:
        between, to = edge
        assert tuple(passed.value for passed in through(state, action)) == between
        assert next_state(state, action).value == to


def test_table_has_no_edge_twice() -> None:
    assert len(TRANSITIONS) == sum(len(row.sources) for row in TABLE) == len(EXPECTED)


def test_every_state_can_be_reached_and_left() -> None:
    ends = {state for row in TABLE for state in (*row.through, row.to)}
    assert ends == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State)


@pytest.mark.parametrize(
    ("state", "operations"),
    [
        (State.UNDEFINED, ("define",)),
        (State.DEFINED, ("undefine", "configure")),
        (State.CONFIGURED, ("clean", "run")),
        (State.RUNNING, ("stop", "pause", "scale", "migrate")),
        (State.PAUSED, ("resume",)),
        (State.SCALING, ()),
    ],
)
def test_refusal_names_what_can_be_asked_for(state: State, operations: tuple[str, ...]) -> None:
    assert allowed(state) == operations


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
def test_wire_word_leads_back_to_the_state(state: State) -> None:
    assert State.from_wire(state.wire) is state


@pytest.mark.parametrize("word", ["ERROR", "STOP", "CLEAN", "RUNNING", "run", "", "\n"])
def test_other_words_are_no_state(word: str) -> None:
    with pytest.raises(DescriptorError) as caught:
        State.from_wire(word)
    assert caught.value.field == "status"


def test_text_shows_each_row_of_the_table() -> None:
    lines = render("text").splitlines()
    assert len(lines) == 1 + len(TABLE)
    scale = next(line for line in lines if line.startswith("scale "))
    assert scale.split() == ["scale", "RUNNING", "SCALING", "RUNNING"]


def test_diagrams_have_an_arrow_for_each_single_step() -> None:
    steps = set()
    for (source, _), (between, to) in EXPECTED.items():
        chain = (source, *between, to)
        steps |= set(itertools.pairwise(chain))
    mermaid, dot = render("mermaid"), render("dot")
    for source, to in steps:
        assert f"    {source} --> {to}: " in mermaid
        assert f"    {source} -> {to} [" in dot
    assert mermaid.count(" --> ") == len(steps) + 1
    assert dot.startswith("digraph fdu {\n")
    assert dot.endswith("}\n")


def test_only_events_are_dashed() -> None:
    events = {event.value for event in Event}
    for line in render("dot").splitlines():
        if "->" in line:
            labels = set(line.split('"')[1].split(", "))
            assert (labels <= events) == ("dashed" in line)
