"""Every edge, end and refusal is one event: in order, numbered, with the state that it led to."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import scale
from nodes import MakeNode, make_descriptor, start, until

from nativert.errors import NativertError, TransitionError
from nativert.runtime.node import Node
from nativert.runtime.views import Event

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"


def test_a_whole_life(node: Node) -> None:
    app = node.define(make_descriptor(shell=SLEEP)).instance
    node.configure(app)
    node.run(app)
    node.pause(app)
    node.resume(app)
    node.scale(app, {"pids_max": 33})
    with pytest.raises(TransitionError):
        node.configure(app)
    with pytest.raises(NativertError):
        node.scale(app, {"nonsense": 1})
    node.restart(app)
    node.stop(app)
    node.clean(app)
    node.undefine(app)
    events = node.events()
    assert [(event.kind, event.data.get("state")) for event in events] == [
        ("defined", "DEFINED"),
        ("configured", "CONFIGURED"),
        ("started", "RUNNING"),
        ("paused", "PAUSED"),
        ("resumed", "RUNNING"),
        ("scaled", "RUNNING"),
        ("refused", None),
        ("failed", None),
        ("ended", "CONFIGURED"),
        ("started", "RUNNING"),
        ("ended", "CONFIGURED"),
        ("cleaned", "DEFINED"),
        ("undefined", "UNDEFINED"),
    ]
    assert {(event.instance, event.name) for event in events} == {(app, "app")}
    assert [event.seq for event in events] == list(range(1, 14))
    assert events[5].data["limits"]["pids_max"] == 33
    assert events[6].data["operation"] == "configure"
    assert events[7].data["code"] == "usage"
    assert events[8].data["end"]["reason"] == "stopped"
    times = [event.time for event in events]
    assert times == sorted(times)
    assert [event.seq for event in node.events(11)] == [12, 13]
    assert [event.seq for event in node.events(limit=2)] == [1, 2]
    assert node.latest_event() == 13


def test_a_wait_ends_with_the_event_of_another_process(make_node: MakeNode, root: Path) -> None:
    node, other = make_node(), make_node(root)
    app = start(node, shell=SLEEP)
    cursor = node.latest_event()
    assert other.wait_events(cursor, 0.1) == []
    found: list[Event] = []
    waiter = threading.Thread(target=lambda: found.extend(other.wait_events(cursor, scale.LONG_S)))
    waiter.start()
    begun = time.monotonic()
    node.pause(app)
    waiter.join()
    assert [event.kind for event in found] == ["paused"]
    assert time.monotonic() - begun < scale.LONG_S / 2


def test_an_end_that_nobody_saw_is_told_by_the_next_look(node: Node) -> None:
    app = start(node, shell=SLEEP)
    os.kill(node.get(app).pid or 0, signal.SIGKILL)
    until(lambda: node.get(app).state == "CONFIGURED", what="it has ended")
    last = node.events()[-1]
    assert (last.kind, last.data["end"]["signal"]) == ("ended", "SIGKILL")


def test_a_lost_init_is_told(node: Node) -> None:
    app = start(node, shell=SLEEP)
    facts = node.look(app).facts
    assert facts is not None
    os.kill(facts.init_pid or 0, signal.SIGKILL)
    until(lambda: node.get(app).state == "DEFINED", what="init is gone")
    last = node.events()[-1]
    assert (last.kind, last.data["end"]["reason"]) == ("lost", "init-lost")
