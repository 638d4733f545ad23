"""Every operation from every state that a real instance can be in, held against the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nodes import make_descriptor

from nativert.errors import Code, TransitionError
from nativert.fdu.states import TRANSITIONS, Operation, State, allowed, next_state
from nativert.runtime.node import Node
from nativert.store.boot import FACTS

pytestmark = [pytest.mark.root, pytest.mark.netns]

# The states that an instance stays in, and what leads there from DEFINED.
WAYS: dict[State, tuple[Operation, ...]] = {
    State.DEFINED: (),
    State.CONFIGURED: (Operation.CONFIGURE,),
    State.RUNNING: (Operation.CONFIGURE, Operation.RUN),
    State.PAUSED: (Operation.CONFIGURE, Operation.RUN, Operation.PAUSE),
}
# DEFINE is for what is not there yet; a node takes no migrations.
OFFERED: dict[Operation, Callable[[Node, str], object]] = {
    Operation.UNDEFINE: lambda node, ref: node.undefine(ref),
    Operation.CONFIGURE: lambda node, ref: node.configure(ref),
    Operation.CLEAN: lambda node, ref: node.clean(ref),
    Operation.RUN: lambda node, ref: node.run(ref),
    Operation.STOP: lambda node, ref: node.stop(ref),
    Operation.PAUSE: lambda node, ref: node.pause(ref),
    Operation.RESUME: lambda node, ref: node.resume(ref),
    Operation.SCALE: lambda node, ref: node.scale(ref, {"pids_max": 50}),
}


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def update_fdu_status(self, fdu: str, instance: str, status: str) -> None:
        self.said.append((instance, status))

    def write_fdu_error(self, fdu: str, instance: str, code: int, message: str) -> None:
        self.said.append((instance, "ERROR", code, message))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def node(make_node: Callable[..., Node], heard: Heard) -> Node:
    return make_node(reporter=heard)


def brought_to(node: Node, state: State) -> str:
    ref = node.define(make_descriptor(shell="exec sleep 1000", veth=True)).instance
    for operation in WAYS[state]:
        OFFERED[operation](node, ref)
    assert node.get(ref).state == state.value
    return ref


def everything_of(node: Node, ref: str) -> tuple[object, ...]:
    """What an operation that was refused must not have changed."""
    row = node.get(ref)
    context = node._context
    facts = context.paths.instance_run(ref) / FACTS
    cgroup = f"i-{ref}"
    return (
        (row.state, row.pid, row.restarts, row.end),
        context.store.find(ref),
        facts.read_bytes() if facts.exists() else None,
        context.driver.open(cgroup).read() if cgroup in context.driver.names() else None,
        context.network.links(),
        sorted(path.name for path in context.paths.instance_run(ref).parent.iterdir()),
    )


def test_the_test_knows_every_operation_that_is_offered() -> None:
    not_here = {Operation.DEFINE, Operation.MIGRATE, Operation.LAND}
    assert set(OFFERED) | not_here == set(Operation)


@pytest.mark.parametrize("state", WAYS, ids=lambda state: state.value)
def test_every_operation(node: Node, heard: Heard, state: State) -> None:
    ref = brought_to(node, state)
    for operation, carry_out in OFFERED.items():
        legal = (state, operation) in TRANSITIONS
        if not legal:
            before = everything_of(node, ref)
            heard.said.clear()
            with pytest.raises(TransitionError) as refused:
                carry_out(node, ref)
            error = refused.value
            assert everything_of(node, ref) == before, operation
            assert error.code is Code.TRANSITION
            assert error.code.exit_code == 4
            assert (error.operation, error.state) == (operation.value, state.value)
            assert error.allowed == allowed(state)
            assert all(word in str(error) for word in allowed(state))
            # First the error, then the true state again.
            assert heard.said == [
                (ref, "ERROR", Code.TRANSITION.fog05, error.message),
                (ref, state.wire),
            ]
            continue
        target = next_state(state, operation)
        heard.said.clear()
        carry_out(node, ref)
        assert heard.said == [(ref, target.wire)]
        if target is State.UNDEFINED:
            assert ref not in {row.instance for row in node.list()}
        else:
            assert node.get(ref).state == target.value
        if target is not state:
            if target is not State.UNDEFINED:
                node.remove(ref, force=True)
            ref = brought_to(node, state)


def test_the_cli_refuses_with_4_and_names_what_is_allowed(
    cli: Callable[..., Any], node: Node, root: Path
) -> None:
    node.define(make_descriptor(shell="exec sleep 1000"))
    done = cli("stop", "app")
    assert done.returncode == 4
    assert done.stderr == (
        "nativert: app: cannot stop: the instance is DEFINED (allowed: undefine, configure)\n"
    )
    assert node.get("app").state == "DEFINED"
