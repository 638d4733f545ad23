"""One instance of a real Node, taken through random lives in which steps fail and processes die.

What the node stands on is a `World`: a host in memory, or this machine.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any, ClassVar, Protocol

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nativert.errors import NativertError, TransitionError, UnknownInstanceError
from nativert.fdu.descriptor import decode
from nativert.fdu.states import Operation, State, allowed, next_state
from nativert.launcher.failpoints import UnexpectedError
from nativert.runtime import failpoints
from nativert.runtime.node import Node
from nativert.runtime.protocols import Reporter

VERBS = ("configure", "run", "pause", "resume", "scale", "stop", "clean", "undefine")
# From here on an interrupted operation is finished, because it cannot be taken back: an
# application that was killed, a sandbox of which a part is gone.
FINISHED = {"stop": State.CONFIGURED, "clean": State.DEFINED}
# Behind the last step nothing is left that could fail.
COMPLETE = {"define.stored", "undefine.stored"}
SHARED = {"stop": ("stop", "end"), "clean": ("clean", "release")}
POINTS = {
    verb: [
        point
        for point in failpoints.POINTS
        if point.partition(".")[0] in SHARED.get(verb, (verb,)) and point not in COMPLETE
    ]
    for verb in VERBS
}
MIB = st.integers(32, 256)
ACTIONS = ("enospc", "eio", "raise")
WITH_SANDBOX = (State.CONFIGURED, State.RUNNING, State.PAUSED)


class World(Protocol):
    """What a node of the machine stands on."""

    node: Node
    descriptor: dict[str, Any]
    # Whether `fails_in` has a meaning here.
    steps_can_fail: bool
    # How many more calls of the world succeed before one fails; None for all.
    fails_in: int | None

    def kill_application(self, uuid: str) -> None:
        """Kill it, and let its end be noted."""

    def kill_init(self, uuid: str) -> None:
        """Kill it, and what it holds."""

    def lose_facts(self, uuid: str) -> bool:
        """Remove what is known of this boot; False if there is nothing."""

    def agrees(self, state: State, uuid: str, memory_max: int) -> None:
        """Fail unless the host has what *state* says, and nothing else."""

    def close(self) -> None:
        """Remove it."""


class Lifecycle(RuleBasedStateMachine):
    """`state` is what the table says; the node and the world must agree with it."""

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make_world(self)
        self.node = self.world.node
        self.reported: list[State] = []
        self.errors = 0
        self.memory_max = 64 << 20
        self.state = State.UNDEFINED
        self.uuid = ""

    @staticmethod
    def make_world(reporter: Reporter) -> World:
        """Return a new world; each kind of machine has its own."""
        raise NotImplementedError

    def teardown(self) -> None:
        failpoints.arm("")
        self.world.fails_in = None
        self.world.close()

    # -- who hears of it -----------------------------------------------------------------

    def update_fdu_status(self, fdu: str, instance: str, status: str) -> None:
        self.reported.append(State.from_wire(status))

    def write_fdu_error(self, fdu: str, instance: str, code: int, message: str) -> None:
        self.errors += 1

    # -- operations ----------------------------------------------------------------------

    @initialize(climb=st.integers(0, 3))
    def begin(self, climb: int) -> None:
        self.define()
        for verb in ("configure", "run", "pause")[:climb]:
            self.take(verb, 0)

    @precondition(lambda self: self.state is State.UNDEFINED)
    @rule()
    def define(self) -> None:
        descriptor = decode(json.dumps(self.world.descriptor).encode(), source="test")
        self.uuid = self.node.define(descriptor).instance
        self.state, self.memory_max = State.DEFINED, 64 << 20

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule(verb=st.sampled_from(VERBS), mib=MIB)
    def ask_for_anything(self, verb: str, mib: int) -> None:
        self.take(verb, mib)

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule(choice=st.randoms(use_true_random=False), mib=MIB)
    def operate(self, choice: Random, mib: int) -> None:
        self.take(choice.choice(self.offered()), mib)

    @precondition(lambda self: self.state is not State.UNDEFINED and self.world.steps_can_fail)
    @rule(choice=st.randoms(use_true_random=False), mib=MIB, fails_in=st.integers(0, 14))
    def operate_while_a_step_fails(self, choice: Random, mib: int, fails_in: int) -> None:
        self.world.fails_in = fails_in
        try:
            self.take(choice.choice(self.offered()), mib)
        finally:
            self.world.fails_in = None

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule(choice=st.randoms(use_true_random=False), mib=MIB, action=st.sampled_from(ACTIONS))
    def operate_and_fail_behind_a_step(self, choice: Random, mib: int, action: str) -> None:
        verb = choice.choice(self.offered())
        failpoints.arm(f"{choice.choice(POINTS[verb])}={action}")
        try:
            self.take(verb, mib)
        finally:
            failpoints.arm("")

    def offered(self) -> list[str]:
        """What can be asked for now; a migration has a machine of its own."""
        return [verb for verb in allowed(self.state) if verb in VERBS]

    def take(self, verb: str, mib: int) -> None:
        """Ask for *verb*, and follow the table; *mib* is what scale asks for."""
        operation = Operation(verb)
        arguments: dict[str, Any] = {"change": {"memory_max": mib << 20}} if verb == "scale" else {}
        heard = len(self.reported), self.errors
        try:
            getattr(self.node, verb)(self.uuid, **arguments)
        except TransitionError:
            with pytest.raises(TransitionError):
                next_state(self.state, operation)
            assert self.errors == heard[1] + 1
        except UnexpectedError:
            # What nobody expected is nobody's to report or to take back: the caller sees it, and
            # the state is told as it is.
            assert self.errors == heard[1]
            self._failed(verb, next_state(self.state, operation))
        except NativertError:
            assert self.errors == heard[1] + 1
            self._failed(verb, self.state)
        else:
            self.state = next_state(self.state, operation)
            assert self.reported[heard[0] :] == [self.state]
            if verb == "scale":
                self.memory_max = mib << 20

    def _failed(self, verb: str, done: State) -> None:
        self.world.fails_in = None
        failpoints.arm("")
        found = self.found()
        assert found in (self.state, done, FINISHED.get(verb)), f"after a failed {verb}"
        self.state = found

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule(fails_in=st.none() | st.integers(0, 20))
    def remove(self, fails_in: int | None) -> None:
        self.world.fails_in = fails_in if self.world.steps_can_fail else None
        try:
            self.node.remove(self.uuid, force=True)
        except NativertError:
            assert fails_in is not None
            self.world.fails_in = None
            self.state = self.found()
        else:
            self.state = State.UNDEFINED
        self.world.fails_in = None

    # -- events --------------------------------------------------------------------------

    @precondition(lambda self: self.state in (State.RUNNING, State.PAUSED))
    @rule()
    def the_application_is_killed(self) -> None:
        self.world.kill_application(self.uuid)
        self.state = State.CONFIGURED

    @precondition(lambda self: self.state in WITH_SANDBOX)
    @rule()
    def init_is_killed(self) -> None:
        self.world.kill_init(self.uuid)
        self.state = State.DEFINED

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule()
    def the_facts_are_lost(self) -> None:
        if self.world.lose_facts(self.uuid):
            self.state = State.DEFINED

    @rule()
    def garbage_is_collected(self) -> None:
        assert all(leftover.removed for leftover in self.node.gc())

    # -- what must hold ------------------------------------------------------------------

    def found(self) -> State:
        """Return where the node says that the instance is."""
        try:
            return State(self.node.get(self.uuid).state)
        except UnknownInstanceError:
            return State.UNDEFINED

    @invariant()
    def node_and_world_agree(self) -> None:
        type(self).steps += 1
        if self.uuid:
            assert self.found() is self.state
            self.world.agrees(self.state, self.uuid, self.memory_max)


def settings_for(examples: int) -> settings:
    """Return the settings of one run of a machine, of *examples* of at most 30 steps."""
    return settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        # A failure is told with its steps; making it shorter takes minutes.
        phases=(Phase.generate,),
    )


def run_for(machine: type[Lifecycle], *, steps: int, examples: int = 20) -> int:
    """Run *machine* until it has taken *steps*; return how many it took."""
    machine.steps = 0
    while machine.steps < steps:
        run_state_machine_as_test(machine, settings=settings_for(examples))  # type: ignore[no-untyped-call]
    return machine.steps
