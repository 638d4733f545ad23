"""Processes that stand still: who waits for them is told so, and goes on without them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import scale
from agents import serving
from invariants import lives
from nodes import MakeNode, launcher_of, make_descriptor, start, until, until_logged

from nativert.agent import wire
from nativert.errors import Code, NativertError
from nativert.isolation import process
from nativert.launcher import client as launcher_client

pytestmark = [pytest.mark.root, pytest.mark.netns]


# Longer than a launcher that goes on takes for an answer, on a busy machine too.
_SO_LONG_S = scale.seconds(5)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that does not answer is waited for only so long."""
    monkeypatch.setattr(launcher_client, "_TIMEOUT_S", _SO_LONG_S)
    defaults = launcher_client.Channel.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "timeout_s", _SO_LONG_S)


@pytest.mark.usefixtures("impatient")
def test_a_launcher_that_stands_still_makes_room_for_another(
    make_node: MakeNode, root: Path
) -> None:
    """By its kept connection, and by a new one."""
    node = make_node()
    first = start(node, name="first", shell="exec sleep 1000")
    pid = node.get(first).pid
    began = process.start_time(pid or 0)
    for name, other in (("kept", node), ("new", make_node(root))):
        stopped = launcher_of(root)
        os.kill(stopped, signal.SIGSTOP)
        assert (
            other.configure(other.define(make_descriptor(name=name, shell="true")).instance).state
            == "CONFIGURED"
        )
        assert launcher_of(root) != stopped
        assert (node.get(first).state, node.get(first).pid) == ("RUNNING", pid)
        assert lives(pid, began)


def test_a_launcher_that_stands_still_is_collected(make_node: MakeNode, root: Path) -> None:
    node = make_node()
    node.configure(node.define(make_descriptor(shell="true")).instance)
    stopped = launcher_of(root)
    os.kill(stopped, signal.SIGSTOP)
    node.remove("app", force=True)
    assert all(leftover.removed for leftover in node.gc())
    assert node.gc() == []


def test_a_command_is_told_that_the_agent_stands_still(
    make_node: MakeNode, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LOOK_S", 0.5)
    node = make_node()
    app = start(node, shell="trap '' TERM; echo up; while :; do sleep 0.1; done",
                native={"stop": {"grace": "3s"}})  # fmt: skip
    until_logged(node, app, "up")
    with serving(root) as agent, agent.client() as client:
        # What takes longer than a look is waited for.
        assert client.stop(app).state == "CONFIGURED"
        agent.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(wire, "_PATIENCE_S", 1.0)
        try:
            with pytest.raises(NativertError, match="does not answer") as late:
                client.run(app)
            assert late.value.code is Code.TIMEOUT
        finally:
            agent.process.send_signal(signal.SIGCONT)
        # It may carry it out now, or see that nobody waits for it any more.
        assert client.get(app).state in ("CONFIGURED", "RUNNING")


def test_an_agent_that_stands_still_answers_when_it_goes_on(
    make_node: MakeNode, root: Path
) -> None:
    node = make_node()
    app = start(node, shell="i=0; while :; do echo $((i=i+1)); sleep 0.05; done")
    pid = node.get(app).pid
    with serving(root) as agent:
        agent.process.send_signal(signal.SIGSTOP)
        try:
            with agent.connect() as waiting:
                waiting.settimeout(0.5)
                waiting.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                with pytest.raises(TimeoutError):
                    waiting.recv(1)
                # Nobody needs it: not the application, not a command that goes without it.
                before = len(list(node.logs(app)))
                until(lambda: len(list(node.logs(app))) > before + 5, what="the log goes on")
                node.pause(app)
                node.resume(app)
                time.sleep(0.5)
                agent.process.send_signal(signal.SIGCONT)
                waiting.settimeout(scale.LONG_S)
                assert waiting.recv(12) == b"HTTP/1.1 200"
        finally:
            agent.process.send_signal(signal.SIGCONT)
        with agent.client() as client:
            row = client.get(app)
            assert (row.state, row.pid, row.restarts) == ("RUNNING", pid, 0)
            assert client.stop(app).state == "CONFIGURED"
