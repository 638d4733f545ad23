"""Applications that end are started again as their policy says, and as an operator wants."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from nodes import MakeNode, ended, make_descriptor, until

from nativert.errors import Code, NativertError
from nativert.runtime.node import Node
from nativert.runtime.supervision.supervisor import Supervisor
from nativert.runtime.views import Event

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
QUICK = {"backoff": "100ms", "backoff_max": "200ms"}


@contextmanager
def supervised(node: Node, **options: Any) -> Iterator[Supervisor]:
    """A supervisor of *node*, ended with the block."""
    supervisor = Supervisor(node, **options)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.close()


def kinds(node: Node, ref: str) -> list[str]:
    """The kinds of all events of an instance, in order."""
    return [event.kind for event in of(node, ref)]


def of(node: Node, ref: str) -> list[Event]:
    """All events of an instance, in order."""
    return [event for event in node.events(limit=10_000) if event.instance == ref]


def running(node: Node, ref: str) -> int:
    """The pid, if it runs; else 0."""
    row = node.get(ref)
    return row.pid or 0 if row.state == "RUNNING" else 0


def start_with(node: Node, restart: dict[str, object], **fields: Any) -> str:
    native = {"restart": QUICK | restart, **fields.pop("native", {})}
    app = node.define(make_descriptor(native=native, **fields)).instance
    node.configure(app)
    node.run(app)
    return app


def test_one_that_fails_is_started_again_until_it_gives_up(node: Node) -> None:
    with supervised(node):
        app = start_with(node, {"policy": "on-failure", "max": 2}, shell="exit 3")
        until(lambda: "gave-up" in kinds(node, app), what="it gives up")
        row = node.get(app)
        assert (row.state, row.restarts, ended(row).exit_code) == ("CONFIGURED", 2, 3)
        native: Any = node.inspect(app)["native"]
        assert native["restart"]["reason"] == "gave up after 2 restarts"
        assert native["restart"]["next_attempt_at"] is None
        assert not native["restart"]["waits"]
    told = [kind for kind in kinds(node, app) if kind not in ("defined", "configured")]
    assert told == [
        *("started", "ended", "restart-planned"),
        *("started", "ended", "restart-planned"),
        *("started", "ended", "gave-up"),
    ]


def test_a_success_is_the_end_on_failure_and_not_always(node: Node) -> None:
    with supervised(node):
        once = start_with(node, {"policy": "on-failure"}, name="once", shell="exit 0")
        always = start_with(node, {"policy": "always", "max": 1}, name="always", shell="exit 0")
        until(lambda: "rests" in kinds(node, once), what="it rests")
        until(lambda: "gave-up" in kinds(node, always), what="it was started again")
        assert node.get(once).restarts == 0
        assert node.get(always).restarts == 1


def test_a_killed_application_and_a_killed_init_come_back(node: Node) -> None:
    with supervised(node):
        app = start_with(node, {"policy": "always"}, shell=SLEEP, veth=True)
        first = running(node, app)
        os.kill(first, signal.SIGKILL)
        second = until(lambda: running(node, app) not in (0, first) and running(node, app))
        native: Any = node.inspect(app)["native"]
        os.kill(native["init_pid"], signal.SIGKILL)
        until(lambda: running(node, app) not in (0, second), what="it runs with a new init")
        assert node.get(app).restarts == 2
        assert "lost" in kinds(node, app)


def test_a_stop_by_an_operator_ends_it_also_between_two_attempts(node: Node) -> None:
    with supervised(node):
        app = start_with(node, {"policy": "always"}, shell=SLEEP)
        node.stop(app)
        looping = start_with(
            node,
            {"policy": "always", "backoff": "1m", "backoff_max": "1m"},
            name="loop",
            shell="exit 1",
        )
        until(lambda: "restart-planned" in kinds(node, looping), what="an attempt is planned")
        native: Any = node.inspect(looping)["native"]
        assert time.time() < native["restart"]["next_attempt_at"] < time.time() + 61
        assert node.stop(looping).state == "CONFIGURED"
        native = node.inspect(looping)["native"]
        assert (native["wanted"], native["restart"]["waits"]) == ("CONFIGURED", False)
    assert kinds(node, app)[-1] == "ended"
    assert node.get(app).state == "CONFIGURED"


def test_the_plan_outlives_the_supervisor(make_node: MakeNode) -> None:
    node = make_node()
    with supervised(node):
        app = start_with(
            node, {"policy": "always", "backoff": "1s", "backoff_max": "1s"}, shell="exit 1"
        )
        until(lambda: "restart-planned" in kinds(node, app), what="an attempt is planned")
    assert node.get(app).state == "CONFIGURED"
    with supervised(make_node()):
        until(lambda: node.get(app).restarts >= 1, what="it was started again")
        until(lambda: kinds(node, app).count("restart-planned") >= 2, what="and again")
        planned = [e.data["attempt"] for e in of(node, app) if e.kind == "restart-planned"]
        assert planned[:2] == [1, 2]


def test_without_anybody_there_it_is_refused(node: Node) -> None:
    app = node.define(make_descriptor(native={"restart": {"policy": "always"}}, shell=SLEEP))
    node.configure(app.instance)
    with pytest.raises(NativertError) as refused:
        node.run(app.instance)
    assert refused.value.code is Code.NO_AGENT
    assert "nativert agent" in refused.value.hint
    assert node.get(app.instance).state == "CONFIGURED"
