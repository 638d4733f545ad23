"""Checks from inside an instance, what they lead to, and that they never pile up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from nodes import cgroup, ended, log_text, make_descriptor, run_inside, until

from nativert.runtime.node import Node
from nativert.runtime.supervision.supervisor import Supervisor
from nativert.runtime.views import Event

pytestmark = [pytest.mark.root, pytest.mark.netns]

# No check takes that long, however busy the machine is, but those that are to.
QUICK = {"interval": "100ms", "timeout": "1m", "retries": 2}
SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if os.path.exists('/data/sick') else 200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(('127.0.0.1', 8080), Handler).serve_forever()
"""


@pytest.fixture
def supervised(node: Node) -> Iterator[Node]:
    """The test's node, with a supervisor."""
    supervisor = Supervisor(node)
    supervisor.start()
    yield node
    supervisor.close()


def of(node: Node, ref: str, kind: str, after: int = 0) -> list[Event]:
    return [e for e in node.events(after, limit=10_000) if (e.instance, e.kind) == (ref, kind)]


def begin(node: Node, health: dict[str, object], **fields: Any) -> str:
    native = {"health": QUICK | health, **fields.pop("native", {})}
    app = node.define(make_descriptor(native=native, **fields)).instance
    node.configure(app)
    node.run(app)
    return app


def status(node: Node, ref: str) -> dict[str, Any]:
    native: Any = node.inspect(ref)["native"]
    found: dict[str, Any] = native["health"]
    return found


@pytest.mark.parametrize("mode", ["private", "none"])
@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_a_port_inside_is_asked(supervised: Node, kind: str, mode: str) -> None:
    health = {"http": {"http": {"port": 8080}}, "tcp": {"tcp": 8080}}[kind]
    app = begin(
        supervised, health, python=SERVER, native={"network": {"mode": mode}}, name=f"{kind}-{mode}"
    )
    until(lambda: of(supervised, app, "healthy"), what="it is healthy")
    assert status(supervised, app)["status"] == "healthy"
    if kind == "http":
        # Until the server listened it may have been unhealthy too.
        cursor = supervised.latest_event()
        assert run_inside(supervised, app, "touch", "/data/sick")[0] == 0
        until(lambda: of(supervised, app, "unhealthy", cursor), what="it is unhealthy")
        said = of(supervised, app, "unhealthy", cursor)[0].data
        assert said["failures"] == 2
        assert "500" in said["message"]
        # Without a restart policy it is told, and nothing is done.
        assert supervised.get(app).state == "RUNNING"


def test_an_unhealthy_one_is_started_again_and_the_verdict_says_why(supervised: Node) -> None:
    # What has just been started, and has not yet cleared up after the run before, is not sick.
    check = "echo out of sorts; ! { grep -qx sleep /proc/[0-9]*/comm && test -e /data/sick; }"
    app = begin(
        supervised,
        {"exec": ["/bin/sh", "-c", check]},
        shell="rm -f /data/sick; echo begun; exec sleep 1000",
        native={"restart": {"policy": "on-failure", "backoff": "100ms"}},
    )
    until(lambda: of(supervised, app, "healthy"), what="it is healthy")
    assert run_inside(supervised, app, "touch", "/data/sick")[0] == 0
    until(lambda: supervised.get(app).restarts == 1, what="it was started again")
    [end] = of(supervised, app, "ended")
    assert end.data["end"]["reason"] == "unhealthy"
    assert "health check" in end.data["end"]["message"]
    assert "out of sorts" in end.data["end"]["message"]
    until(lambda: len(of(supervised, app, "healthy")) == 2, what="it is healthy again")
    assert log_text(supervised, app).count("begun") == 2


def test_the_start_period_forgives(supervised: Node) -> None:
    begun = time.monotonic()
    app = begin(
        supervised,
        {"exec": ["/bin/false"], "start_period": "1500ms"},
        shell="exec sleep 1000",
    )
    until(lambda: of(supervised, app, "unhealthy"), what="it is unhealthy")
    assert time.monotonic() - begun > 1.5
    assert status(supervised, app)["status"] == "unhealthy"


def test_checks_wait_while_it_is_paused(supervised: Node) -> None:
    app = begin(supervised, {"tcp": 8080}, python=SERVER)
    until(lambda: of(supervised, app, "healthy"), what="it is healthy")
    cursor = supervised.latest_event()
    supervised.pause(app)
    # Ten intervals in which no frozen server answers.
    assert not [e for e in wait_kind(supervised, app, "unhealthy", 1.2) if e.instance == app]
    supervised.resume(app)
    until(lambda: status(supervised, app)["failures"] == 0, what="it is checked again")
    assert not of(supervised, app, "unhealthy", cursor)


def wait_kind(node: Node, ref: str, kind: str, seconds: float) -> list[Event]:
    cursor, end = node.latest_event(), time.monotonic() + seconds
    while (left_s := end - time.monotonic()) > 0:
        for event in node.wait_events(cursor, left_s):
            cursor = event.seq
            if (event.instance, event.kind) == (ref, kind):
                return [event]
    return []


def test_a_check_that_hangs_and_floods_neither_piles_up_nor_costs_memory(supervised: Node) -> None:
    app = begin(
        supervised,
        {"exec": ["/bin/sh", "-c", "while :; do echo flood; done"], "timeout": "300ms"},
        shell="exec sleep 1000",
    )
    until(lambda: of(supervised, app, "unhealthy"), what="it is unhealthy")
    said = of(supervised, app, "unhealthy")[0].data["message"]
    assert said.startswith("no end after 0.3 s: ")
    assert len(said) < 1200
    most = max(len(cgroup(supervised, app).pids()) for _ in range(50) if not time.sleep(0.02))
    assert most <= 3
    assert supervised.stop(app).state == "CONFIGURED"
    assert ended(supervised.get(app)).reason == "stopped"
