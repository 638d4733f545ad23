"""The agent's own life: one at a time, ends that leave everything running, and finding it again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import scale
from agents import Agent, serving
from agents import start as start_agent
from nodes import CLI, ended, log_text, make_document, start, until

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

COUNT = "i=0; while :; do echo $((i=i+1)); sleep 0.02; done"


@pytest.fixture
def agent(root: Path, node: Node) -> Iterator[Agent]:
    with serving(root) as one:
        yield one


def test_a_second_agent_leaves_at_once_and_touches_nothing(agent: Agent) -> None:
    def tree() -> list[tuple[str, int, int]]:
        found = []
        for path in sorted(agent.root.rglob("*")):
            status = path.lstat()
            found.append((str(path), status.st_ino, status.st_mode))
        return found

    # The last file that the first one makes by itself, when it looks for what was left over.
    until((agent.root / "run/nativert/host.lock").exists)
    before = tree()
    second = start_agent(agent.root, stderr=subprocess.PIPE)
    # It does not wait for the first, which goes on.
    _, told = second.communicate(timeout=scale.LONG_S)
    assert second.returncode == 1
    assert f"process {agent.process.pid} serves this node already".encode() in told
    assert tree() == before
    assert agent.ask("GET", "/healthz")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_leaves_the_instances(
    agent: Agent, node: Node, number: signal.Signals
) -> None:
    start(node, name="app", shell=COUNT)
    pid = node.get("app").pid
    with agent.connect() as waiting:
        waiting.sendall(b"GET /v1/instances/app/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        waiting.recv(1)
        assert agent.end(number) == 0
    assert not agent.socket.exists()
    assert (node.get("app").state, node.get("app").pid) == ("RUNNING", pid)


def test_stop_all_ends_the_instances_too(root: Path, node: Node) -> None:
    with serving(root, "--stop-all") as agent:
        start(node, name="app", shell=COUNT)
        start(
            node, name="frozen", shell="trap 'echo bye; exit 3' TERM; while :; do sleep 0.01; done"
        )
        until(lambda: node.get("frozen").state == "RUNNING")
        node.pause("frozen")
        assert agent.end() == 0
    assert [row.state for row in node.list()] == ["CONFIGURED"] * 2
    assert ended(node.get("frozen")).reason == "node-shutdown"


def test_killed_and_started_again_it_finds_everything(root: Path, node: Node) -> None:
    """Applications, logs and exit codes go on; what ended meanwhile is told with its reason."""
    number = scale.count(12, least=4)
    with serving(root) as first:
        with first.client() as client:
            for n in range(number):
                start(client, name=f"app{n}", shell=COUNT)  # type: ignore[arg-type]
            start(client, name="short", shell="until [ -e go ]; do sleep 0.02; done; exit 7")  # type: ignore[arg-type]
            rows = {row.name: row for row in client.list()}
            seen = client.events()[-1].seq
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    (node._context.paths.instance_lib(rows["short"].instance) / "data/go").touch()
    until(lambda: not Path(f"/proc/{rows['short'].pid}").exists())
    with serving(root) as second, second.client() as client:
        for name, row in rows.items():
            if name != "short":
                assert (client.get(name).pid, client.get(name).state) == (row.pid, "RUNNING")
                lines = log_text(client, name).split()  # type: ignore[arg-type]
                assert lines == [str(n + 1) for n in range(len(lines))]
        assert ended(client.get("short")).exit_code == 7
        kinds = [e.kind for e in client.events(seen) if e.name == "short"]
        assert kinds == ["ended"]


def test_a_foreground_run_outlives_the_agent(root: Path, node: Node, tmp_path: Path) -> None:
    document = tmp_path / "app.json"
    shell = "i=0; while [ ! -e go ]; do echo $((i=i+1)); sleep 0.01; done; exit 9"
    document.write_text(json.dumps(make_document(shell=shell)))
    with serving(root) as first:
        run = subprocess.Popen(
            [*CLI, "run", str(document)],
            env=os.environ | {"NATIVERT_ROOT": str(root)},
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert run.stdout is not None
        assert run.stdout.read(2) == b"1\n"
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        row = node.get("app")
        until(lambda: len(log_text(node, "app").split()) > 50)
        expected = log_text(node, "app")
        (node._context.paths.instance_lib(row.instance) / "data/go").touch()
        out, _ = run.communicate(timeout=scale.LONG_S)
    assert run.returncode == 9
    assert ("1\n" + out.decode()).startswith(expected)
    lines = [int(line) for line in out.split()]
    assert lines == list(range(2, len(lines) + 2))
    assert node.list() == []


def test_the_service_manager_is_told(root: Path, node: Node) -> None:
    address = f"\0nativert-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(scale.LONG_S)
        env = {"NOTIFY_SOCKET": "@" + address[1:], "WATCHDOG_USEC": "200000"}
        with serving(root, env=env) as agent:
            assert manager.recv(4096).startswith(b"READY=1")

            def three_beats_s() -> float:
                beats = []
                for _ in range(4):
                    assert manager.recv(4096) == b"WATCHDOG=1"
                    beats.append(time.monotonic())
                return beats[-1] - beats[0]

            assert scale.quickest(three_beats_s, below_s=scale.seconds(1)) < scale.seconds(1)
            assert agent.end() == 0
        while (told := manager.recv(4096)) == b"WATCHDOG=1":
            pass
        assert told == b"STOPPING=1"


def test_the_configuration_is_read_and_read_again(root: Path, node: Node) -> None:
    with serving(root, config='log_level = "warning"\n') as agent:
        path = root / "etc/nativert/config.toml"
        assert "serves node" not in agent.log.read_text()
        path.write_text("nonsense = 1\n")
        agent.process.send_signal(signal.SIGHUP)
        until(lambda: "nonsense: is not a known field" in agent.log.read_text())
        path.write_text("stop_all = true\n")
        agent.process.send_signal(signal.SIGHUP)
        until(lambda: "configuration reloaded" in agent.log.read_text())
        start(node, name="app", shell=COUNT)
        assert agent.end() == 0
    assert node.get("app").state == "CONFIGURED"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[api]\nport = 1\n", "api.port: is not a known field"),
        ('[api.tcp]\naddress = "0.0.0.0:25492"\n', "without TLS only a loopback address"),
        ("[api\n", "config.toml"),
    ],
)
def test_a_wrong_configuration_is_refused(
    root: Path, node: Node, config: str, message: str
) -> None:
    path = root / "etc/nativert/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(config)
    process = start_agent(root, stderr=subprocess.PIPE)
    _, told = process.communicate(timeout=scale.LONG_S)
    assert process.returncode == 2
    assert message in told.decode()
    assert not (root / "run/nativert/api.sock").exists()


def test_a_long_root_is_served(tmp_path: Path, make_node: Callable[..., Node]) -> None:
    root = tmp_path / ("x" * 120) / "node"
    node = make_node(root)
    with serving(root) as agent, agent.client() as client:
        assert client.list() == node.list() == []


def test_a_broken_manifest_stops_nothing_else(root: Path, node: Node) -> None:
    plugins = root / "etc/nativert/plugins"
    plugins.mkdir(parents=True)
    (plugins / "broken.json").write_text("{")
    with serving(root) as agent:
        log = agent.log.read_text()
        assert "plugin=broken" in log
        assert "runs plugin=native" in log
        assert agent.ask("GET", "/healthz")[0] == 200
