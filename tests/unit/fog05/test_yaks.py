"""The stand-in for yaks: what fog05's SDK calls of it, between two sessions on loopback."""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import scale

from nativert.errors import Code, NativertError
from nativert.fog05.yaks import Change, Encoding, Value, Workspace, Yaks
from nativert.plugin.zenoh_connector import ZenohConnector
from nativert.plugin.zenoh_session import Settings, open_session

LONG = scale.LONG_S


@pytest.fixture
def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def node(port: int) -> Iterator[ZenohConnector]:
    session = open_session(Settings(listen=(f"tcp/127.0.0.1:{port}",)))
    one = ZenohConnector(session, spaces=("/agfos/**", "/yaks_shim/ready"))
    one.eval("/yaks_shim/ready", lambda _: {"result": True})
    yield one
    one.close()


@pytest.fixture
def workspace(node: ZenohConnector, port: int) -> Iterator[Workspace]:
    with ThreadPoolExecutor() as pool:
        yaks = Yaks.login(f"127.0.0.1:{port}")
        assert yaks.admin() is None
        yield yaks.workspace("/agfos", pool)
        yaks.logout()


def test_values_are_got_by_path_and_selector(node: ZenohConnector, workspace: Workspace) -> None:
    node.put("/agfos/a/info", b'{"x":1}')
    node.put("/agfos/b/info", b'{"x":2}')
    found = workspace.get("/agfos/*/info")
    assert [each.get_path() for each in found] == ["/agfos/a/info", "/agfos/b/info"]
    value = found[1].get_value()
    assert value is not None
    assert json.loads(value.get_value()) == {"x": 2}
    assert [each.get_path() for each in workspace.get("b/info")] == ["/agfos/b/info"]
    assert workspace.get("/agfos/none/info") == []


def test_puts_and_removals_are_heard_on_both_sides(
    node: ZenohConnector, workspace: Workspace
) -> None:
    here: queue.SimpleQueue[tuple[str, bytes | None]] = queue.SimpleQueue()
    there: queue.SimpleQueue[list[Change]] = queue.SimpleQueue()
    node.subscribe("/dgfos/**", lambda sample: here.put((sample.path, sample.value)))
    subscription = workspace.subscribe("/dgfos/**", there.put)
    deadline = time.monotonic() + LONG
    while here.empty():
        assert time.monotonic() < deadline
        workspace.put("/dgfos/x", Value(json.dumps({"é": 1}), encoding=Encoding.STRING))
        time.sleep(0.02)
    assert here.get() == ("/dgfos/x", json.dumps({"é": 1}).encode())
    workspace.remove("/dgfos/x")
    while here.get(timeout=LONG) != ("/dgfos/x", None):
        pass
    (change,) = there.get(timeout=LONG)
    assert change.get_path() == "/dgfos/x"
    assert workspace.unsubscribe(subscription)
    assert not workspace.unsubscribe(subscription)


def test_evals_are_asked_as_fog05_writes_it(node: ZenohConnector, workspace: Workspace) -> None:
    heard: list[dict[str, str]] = []

    def answer(parameters: object) -> dict[str, object]:
        heard.append(dict(parameters))  # type: ignore[call-overload]
        return {"result": "ok"}

    node.eval("/agfos/n/fdu/f/instances/i/start", answer)
    node.eval("/agfos/n/fdu/f/instances/i/log", answer)
    node.eval("/agfos/n/agent/exec/onboard", answer)
    for selector in (
        "/agfos/*/fdu/*/instances/i/start/?(env=A=1,B=2)",
        "/agfos/*/fdu/*/instances/i/start/?(env=)",
        "/agfos/*/fdu/*/instances/i/log",
        '/agfos/n/agent/exec/onboard?(descriptor={"args":["a; (b)"]};x=1)',
    ):
        (entry,) = workspace.get(selector)
        value = entry.get_value()
        assert value is not None
        assert json.loads(value.get_value()) == {"result": "ok"}
    assert heard == [
        {"env": "A=1,B=2"},
        {"env": ""},
        {},
        {"descriptor": '{"args":["a; (b)"]}', "x": "1"},
    ]
    with pytest.raises(ValueError, match="nobody answers") as refused:
        workspace.get("/agfos/n/agent/exec/nothing")
    assert "access control" in str(refused.value)


def test_a_run_that_nobody_answers_has_that_as_its_answer(
    node: ZenohConnector, workspace: Workspace
) -> None:
    (entry,) = workspace.get("/agfos/*/fdu/*/instances/i/run/?(env=)")
    value = entry.get_value()
    assert value is not None
    said = json.loads(value.get_value())
    assert said["error"] == Code.NOT_FOUND.fog05
    assert "nobody answers" in said["error_msg"]


def test_what_is_desired_and_no_node_takes_is_an_error(
    node: ZenohConnector, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    node.subscribe("/dgfos/n/**", lambda sample: heard.append(sample.path))
    assert workspace.put("/dgfos/n/x", Value("1"))
    monkeypatch.setattr("nativert.fog05.yaks._JOIN_S", 0.3)
    with pytest.raises(ValueError, match=r"/dgfos/m/x: no node takes it within 0\.3 s") as refused:
        workspace.put("/dgfos/m/x", Value("1"))
    assert isinstance(refused.value, NativertError)
    assert "access control" in refused.value.hint
    with pytest.raises(ValueError, match="no node takes it"):
        workspace.remove("/dgfos/m/x")


def test_who_looks_for_something_is_told_that_the_node_is_gone(
    node: ZenohConnector, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workspace.get("/agfos/nothing") == []
    monkeypatch.setattr("nativert.fog05.yaks._JOIN_S", 0.3)
    node.close()
    deadline = time.monotonic() + LONG
    with pytest.raises(ValueError, match="the connection is lost"):
        while time.monotonic() < deadline:
            workspace.get("/agfos/nothing")


def test_an_eval_of_the_sdk_is_answered(node: ZenohConnector, workspace: Workspace) -> None:
    workspace.register_eval("/alfos/f", lambda _, given: Value(json.dumps({"result": given})))
    deadline = time.monotonic() + LONG
    while True:
        try:
            reply = node.ask("/alfos/f", {"a.b": "1", "c": "x=y"}, timeout_s=LONG)
            break
        except NativertError:
            assert time.monotonic() < deadline
    assert reply == {"result": {"a": {"b": "1"}, "c": "x=y"}}
    assert workspace.unregister_eval("/alfos/f")
    with pytest.raises(NativertError):
        node.ask("/alfos/f", {}, timeout_s=LONG)


def test_where_nobody_is_a_login_fails(port: int) -> None:
    with pytest.raises(NativertError, match=f"127.0.0.1:{port}") as refused:
        Yaks.login(f"127.0.0.1:{port}")
    assert refused.value.code is Code.NETWORK


def test_where_no_node_answers_a_login_says_what_may_be(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nativert.fog05.yaks._JOIN_S", 0.3)
    session = open_session(Settings(listen=(f"tcp/127.0.0.1:{port}",)))
    with pytest.raises(NativertError, match="no node answers") as refused:
        Yaks.login(f"tcp/127.0.0.1:{port}")
    assert "nativert agent" in refused.value.hint
    session.close()


def test_it_takes_the_place_of_yaks_and_of_no_other() -> None:
    program = """
import sys, types, nativert.fog05
nativert.fog05.install(); nativert.fog05.install()
from yaks import Yaks, Value, Encoding, Change
sys.modules["yaks"] = types.ModuleType("yaks")
try:
    nativert.fog05.install()
except nativert.errors.NativertError as e:
    print(e.message)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "another package yaks has been imported already\n", done.stderr


def test_nothing_of_zenoh_is_imported_without_it() -> None:
    program = """
import sys
sys.modules["zenoh"] = None
import nativert.agent.life, nativert.agent.plugin_process, nativert.cli.plugin, nativert.fog05
try:
    nativert.fog05.install()
except nativert.errors.NativertError as e:
    print(e.message, e.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    text = "zenoh: the package eclipse-zenoh is not installed scripts/setup --zenoh, or"
    assert text in done.stdout, done.stderr
