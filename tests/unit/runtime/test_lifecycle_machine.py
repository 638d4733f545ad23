"""The operations of a real Node on a host in memory, with a failure at any step of any of them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fake_host import FakeContext, Host
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nativert.errors import NativertError, TransitionError, UnknownInstanceError
from nativert.fdu.descriptor import decode
from nativert.fdu.states import Operation, State, allowed, next_state
from nativert.runtime import failpoints
from nativert.runtime import limits as limits_of
from nativert.runtime.node import Node

DESCRIPTOR = {
    "id": "app",
    "name": "app",
    "command": {"binary": "/bin/sh", "args": []},
    "hypervisor": "BARE",
    "interfaces": [{"name": "eth0"}],
    "configuration": {"conf_type": "SCRIPT", "script": "true"},
    "native": {"memory": {"max": "64M"}, "network": {"ports": ["22999:80"]}},
}
VERBS = ("configure", "run", "pause", "resume", "scale", "stop", "clean", "undefine")
# From here on an interrupted operation is finished, because it cannot be taken back: an
# application that was killed, a sandbox of which a part is gone.
FINISHED = {"stop": State.CONFIGURED, "clean": State.DEFINED}
MIB = st.integers(32, 256)
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


class Lifecycle(RuleBasedStateMachine):
    """`state` is what the table says; the node and the host must agree with it."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="lifecycle-"))
        self.host = Host()
        self.context = FakeContext(self.root, self.host)
        self.node = Node(context=self.context, reporter=self)
        self.reported: list[State] = []
        self.errors = 0
        self.memory_max = 64 << 20
        self.state = State.UNDEFINED
        self.uuid = ""

    def teardown(self) -> None:
        failpoints.arm("")
        self.host.close()
        self.node.close()
        shutil.rmtree(self.root)

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
            self._operate(verb, 0)

    @precondition(lambda self: self.state is State.UNDEFINED)
    @rule()
    def define(self) -> None:
        descriptor = decode(json.dumps(DESCRIPTOR).encode(), source="test")
        self.uuid = self.node.define(descriptor).instance
        self.state, self.memory_max = State.DEFINED, 64 << 20

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule(verb=st.sampled_from(VERBS), mib=MIB)
    def ask_for_anything(self, verb: str, mib: int) -> None:
        self._operate(verb, mib)

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule(choice=st.randoms(use_true_random=False), mib=MIB)
    def operate(self, choice: Random, mib: int) -> None:
        self._operate(choice.choice(allowed(self.state)), mib)

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule(choice=st.randoms(use_true_random=False), mib=MIB, fails_in=st.integers(0, 14))
    def operate_while_a_step_fails(self, choice: Random, mib: int, fails_in: int) -> None:
        self.host.fails_in = fails_in
        try:
            self._operate(choice.choice(allowed(self.state)), mib)
        finally:
            self.host.fails_in = None

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule(choice=st.randoms(use_true_random=False), mib=MIB)
    def operate_and_fail_behind_a_step(self, choice: Random, mib: int) -> None:
        verb = choice.choice(allowed(self.state))
        failpoints.arm(f"{choice.choice(POINTS[verb])}=enospc")
        try:
            self._operate(verb, mib)
        finally:
            failpoints.arm("")

    def _operate(self, verb: str, mib: int) -> None:
        operation = Operation(verb)
        arguments: dict[str, Any] = {"change": {"memory_max": mib << 20}} if verb == "scale" else {}
        heard = len(self.reported), self.errors
        try:
            getattr(self.node, verb)(self.uuid, **arguments)
        except TransitionError:
            with pytest.raises(TransitionError):
                next_state(self.state, operation)
            assert self.errors == heard[1] + 1
        except NativertError:
            assert self.errors == heard[1] + 1
            self.host.fails_in = None
            failpoints.arm("")
            found = self._found()
            assert found in (self.state, FINISHED.get(verb)), f"after a failed {verb}"
            self.state = found
        else:
            self.state = next_state(self.state, operation)
            assert self.reported[heard[0] :] == [self.state]
            if verb == "scale":
                self.memory_max = mib << 20

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule(fails_in=st.none() | st.integers(0, 20))
    def remove(self, fails_in: int | None) -> None:
        self.host.fails_in = fails_in
        try:
            self.node.remove(self.uuid, force=True)
        except NativertError:
            assert fails_in is not None
            self.host.fails_in = None
            self.state = self._found()
        else:
            self.state = State.UNDEFINED
        self.host.fails_in = None

    # -- events --------------------------------------------------------------------------

    @precondition(lambda self: self.state in (State.RUNNING, State.PAUSED))
    @rule()
    def the_application_is_killed(self) -> None:
        application = self.host.application(self.uuid)
        assert application is not None
        application.kill()
        self.host.notice()
        self.state = State.CONFIGURED

    @precondition(lambda self: self.uuid in self.host.inits)
    @rule()
    def init_is_killed(self) -> None:
        self.host.inits[self.uuid].process.kill()
        self.host.notice()
        self.state = State.DEFINED

    @precondition(lambda self: self.state is not State.UNDEFINED)
    @rule()
    def the_facts_are_lost(self) -> None:
        path = self.context.paths.instance_run(self.uuid)
        if path.exists():
            shutil.rmtree(path)
            self.state = State.DEFINED

    @rule()
    def garbage_is_collected(self) -> None:
        assert all(leftover.removed for leftover in self.node.gc())

    # -- what must hold ------------------------------------------------------------------

    def _found(self) -> State:
        try:
            return State(self.node.get(self.uuid).state)
        except UnknownInstanceError:
            return State.UNDEFINED

    @invariant()
    def node_and_host_agree(self) -> None:
        if not self.uuid:
            return
        assert self._found() is self.state
        self._host_agrees()

    def _host_agrees(self) -> None:
        with_sandbox = self.state in (State.CONFIGURED, State.RUNNING, State.PAUSED)
        host, cgroup = self.host, f"i-{self.uuid}"
        host.notice()
        assert set(host.cgroups) == ({cgroup} if with_sandbox else set())
        assert len(host.links) == with_sandbox
        assert len(host.ports) == with_sandbox
        assert set(host.inits) == ({self.uuid} if with_sandbox else set())
        assert bool(self.context.claims.ports(self.context.identity.id)) == with_sandbox
        if not with_sandbox and self.state is not State.UNDEFINED:
            assert not self.context.paths.instance_run(self.uuid).exists()
        running = self.state in (State.RUNNING, State.PAUSED)
        assert (host.application(self.uuid) is not None) == running
        assert (cgroup in host.frozen) == (self.state is State.PAUSED)
        if with_sandbox:
            stored = limits_of.decode(self.context.store.get(self.uuid).limits)
            assert stored is not None
            assert stored.memory_max == host.cgroups[cgroup].memory_max == self.memory_max
        if self.state is State.UNDEFINED:
            assert self.context.paths.instances_lib() == []
            assert self.context.paths.instances_locked() == []


Lifecycle.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLifecycle = pytest.mark.timeout(110)(Lifecycle.TestCase)

CLIMB = {
    "configure": (),
    "undefine": (),
    "run": ("configure",),
    "clean": ("configure",),
    "stop": ("configure", "run"),
    "pause": ("configure", "run"),
    "scale": ("configure", "run"),
    "resume": ("configure", "run", "pause"),
}


@pytest.fixture
def machine() -> Iterator[Lifecycle]:
    lifecycle = Lifecycle()
    yield lifecycle
    lifecycle.teardown()


def climb(machine: Lifecycle, verb: str) -> None:
    machine.define()
    for before in CLIMB[verb]:
        machine._operate(before, 0)


def live_on(machine: Lifecycle) -> None:
    """From wherever it is, the instance can be removed, and another one lives and goes."""
    machine.node_and_host_agree()
    if machine.state is not State.UNDEFINED:
        machine.remove(None)
        machine.node_and_host_agree()
    machine.define()
    for verb in ("configure", "run", "pause", "resume", "scale", "stop", "clean", "undefine"):
        machine._operate(verb, 100)
        machine.node_and_host_agree()


@pytest.mark.parametrize("point", [point for points in POINTS.values() for point in points])
def test_a_failure_behind_each_step(machine: Lifecycle, point: str) -> None:
    verb = next(verb for verb, points in POINTS.items() if point in points)
    climb(machine, verb)
    failpoints.arm(f"{point}=eio")
    arguments = {"change": {"pids_max": 9}} if verb == "scale" else {}
    with pytest.raises(NativertError):
        getattr(machine.node, verb)(machine.uuid, **arguments)
    # Before anybody looks: what is released is released by the operation that failed.
    if verb not in FINISHED:
        machine._host_agrees()
    found = machine._found()
    if point == "clean.intent":
        assert found is State.CONFIGURED
    assert found in (machine.state, FINISHED.get(verb))
    machine.state = found
    if verb == "configure":
        # It has lost nothing: it never had anything.
        assert machine.node.get(machine.uuid).end is None
    assert machine.errors == 1
    live_on(machine)


@pytest.mark.parametrize("verb", VERBS)
def test_a_failure_of_each_call(verb: str) -> None:
    failed = True
    fails_in = 0
    while failed:
        machine = Lifecycle()
        try:
            climb(machine, verb)
            machine.host.fails_in = fails_in
            machine._operate(verb, 100)
            # Not used up: the operation has fewer calls, and every one of them has failed once.
            failed = machine.host.fails_in is None
            machine.host.fails_in = None
            live_on(machine)
        finally:
            machine.teardown()
        fails_in += 1
    assert fails_in >= 2
