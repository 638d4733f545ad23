"""The operations of a real Node on a host in memory, with a failure at any step of any of them.

NATIVERT_STEPS says how many steps; scripts/faults takes a hundred thousand.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import scale
from fake_host import FakeContext, Host
from lifecycle import FINISHED, POINTS, VERBS, WITH_SANDBOX, Lifecycle, run_for

from nativert.errors import NativertError
from nativert.fdu.states import State
from nativert.runtime import failpoints
from nativert.runtime import limits as limits_of
from nativert.runtime.node import Node
from nativert.runtime.protocols import Reporter

DESCRIPTOR = {
    "id": "app",
    "name": "app",
    "command": {"binary": "/bin/sh", "args": []},
    "hypervisor": "BARE",
    "interfaces": [{"name": "eth0"}],
    "configuration": {"conf_type": "SCRIPT", "script": "true"},
    "native": {"memory": {"max": "64M"}, "network": {"ports": ["22999:80"]}},
}
STEPS = int(os.environ.get("NATIVERT_STEPS") or scale.count(4500))
# No power is cut here: what waits for a disk would only wait.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class HostInMemory:
    """A `World` of a host in memory; its files are real."""

    descriptor = DESCRIPTOR
    steps_can_fail = True

    def __init__(self, reporter: Reporter) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="lifecycle-", dir=MEMORY))
        self.host = Host()
        self.context = FakeContext(self.root, self.host)
        self.node = Node(context=self.context, reporter=reporter)

    @property
    def fails_in(self) -> int | None:
        return self.host.fails_in

    @fails_in.setter
    def fails_in(self, calls: int | None) -> None:
        self.host.fails_in = calls

    def close(self) -> None:
        self.host.close()
        self.node.close()
        shutil.rmtree(self.root)

    def kill_application(self, uuid: str) -> None:
        application = self.host.application(uuid)
        assert application is not None
        application.kill()
        self.host.notice()

    def kill_init(self, uuid: str) -> None:
        self.host.inits[uuid].process.kill()
        self.host.notice()

    def lose_facts(self, uuid: str) -> bool:
        path = self.context.paths.instance_run(uuid)
        if not path.exists():
            return False
        shutil.rmtree(path)
        return True

    def agrees(self, state: State, uuid: str, memory_max: int) -> None:
        with_sandbox = state in WITH_SANDBOX
        host, cgroup = self.host, f"i-{uuid}"
        host.notice()
        assert set(host.cgroups) == ({cgroup} if with_sandbox else set())
        assert len(host.links) == with_sandbox
        assert len(host.ports) == with_sandbox
        assert set(host.inits) == ({uuid} if with_sandbox else set())
        assert bool(self.context.claims.ports(self.context.identity.id)) == with_sandbox
        if not with_sandbox and state is not State.UNDEFINED:
            assert not self.context.paths.instance_run(uuid).exists()
        running = state in (State.RUNNING, State.PAUSED)
        assert (host.application(uuid) is not None) == running
        assert (cgroup in host.frozen) == (state is State.PAUSED)
        if with_sandbox:
            stored = limits_of.decode(self.context.store.get(uuid).limits)
            assert stored is not None
            assert stored.memory_max == host.cgroups[cgroup].memory_max == memory_max
        if state is State.UNDEFINED:
            assert self.context.paths.instances_lib() == []
            assert self.context.paths.instances_locked() == []


class InMemory(Lifecycle):
    world: HostInMemory
    make_world = staticmethod(HostInMemory)


@pytest.mark.timeout(max(300, STEPS / 2))
def test_random_lives() -> None:
    assert run_for(InMemory, steps=STEPS) >= STEPS


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
def machine() -> Iterator[InMemory]:
    lifecycle = InMemory()
    yield lifecycle
    lifecycle.teardown()


def climb(machine: InMemory, verb: str) -> None:
    machine.define()
    for before in CLIMB[verb]:
        machine.take(before, 0)


def live_on(machine: InMemory) -> None:
    """From wherever it is, the instance can be removed, and another one lives and goes."""
    machine.node_and_world_agree()
    if machine.state is not State.UNDEFINED:
        machine.remove(None)
        machine.node_and_world_agree()
    machine.define()
    for verb in ("configure", "run", "pause", "resume", "scale", "stop", "clean", "undefine"):
        machine.take(verb, 100)
        machine.node_and_world_agree()


@pytest.mark.parametrize("point", [point for points in POINTS.values() for point in points])
def test_a_failure_behind_each_step(machine: InMemory, point: str) -> None:
    verb = next(verb for verb, points in POINTS.items() if point in points)
    climb(machine, verb)
    failpoints.arm(f"{point}=eio")
    arguments = {"change": {"pids_max": 9}} if verb == "scale" else {}
    with pytest.raises(NativertError):
        getattr(machine.node, verb)(machine.uuid, **arguments)
    # Before anybody looks: what is released is released by the operation that failed.
    if verb not in FINISHED:
        machine.world.agrees(machine.state, machine.uuid, machine.memory_max)
    found = machine.found()
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
        machine = InMemory()
        try:
            climb(machine, verb)
            machine.world.host.fails_in = fails_in
            machine.take(verb, 100)
            # Not used up: the operation has fewer calls, and every one of them has failed once.
            failed = machine.world.host.fails_in is None
            machine.world.host.fails_in = None
            live_on(machine)
        finally:
            machine.teardown()
        fails_in += 1
    assert fails_in >= 2
