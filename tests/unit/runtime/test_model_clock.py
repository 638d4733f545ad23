"""A clock that leaps by years changes what is told of times, and nothing that is waited for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
import scale
from test_lifecycle_machine import VERBS, InMemory

from nativert.errors import NativertError
from nativert.fdu.states import State
from nativert.store.locks import InstanceLock

YEARS_S = 10 * 365 * 86400.0


@pytest.fixture
def machine() -> Iterator[InMemory]:
    lifecycle = InMemory()
    yield lifecycle
    lifecycle.teardown()


@pytest.fixture
def leaping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock finds another decade."""
    real = time.time
    decades = itertools.cycle((0.0, YEARS_S, -YEARS_S))
    monkeypatch.setattr(time, "time", lambda: real() + next(decades))


@pytest.mark.usefixtures("leaping")
def test_a_whole_life_takes_no_longer(machine: InMemory) -> None:
    began = time.monotonic()
    for _ in range(5):
        machine.define()
        machine.node_and_world_agree()
        for verb in VERBS:
            machine.take(verb, 100)
            machine.node_and_world_agree()
    machine.define()
    machine.take("configure", 0)
    machine.take("run", 0)
    machine.the_application_is_killed()
    machine.node_and_world_agree()
    assert machine.state is State.CONFIGURED
    assert time.monotonic() - began < scale.seconds(60)
    events = machine.node.events()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


@pytest.mark.usefixtures("leaping")
def test_waits_end_when_they_should(machine: InMemory) -> None:
    machine.define()
    paths = machine.node.paths
    with InstanceLock(paths, machine.uuid):
        began = time.monotonic()
        with pytest.raises(NativertError, match="held by"):
            InstanceLock(paths, machine.uuid, timeout_s=0.2).acquire()
        assert 0.1 < time.monotonic() - began < scale.seconds(10)
    last = machine.node.latest_event()
    began = time.monotonic()
    assert machine.node.wait_events(last, 0.3) == []
    assert 0.2 < time.monotonic() - began < scale.seconds(10)
