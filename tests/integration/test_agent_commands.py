"""Every command of a lifecycle through the agent, and what says that there is one.

The lifecycle is test_commands.py's; here the commands use the agent.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scale
from agents import Agent, serving
from nodes import CLI, make_document, start, until
from test_commands import *  # noqa: F403

from nativert.runtime.node import Node

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
LOOP = "i=0; while :; do echo $((i=i+1)); sleep 0.05; done"


@pytest.fixture(autouse=True)
def agent(root: Path, node: Node) -> Iterator[Agent]:
    with serving(root) as one:
        yield one
        assert "fault" not in one.log.read_text()


def test_version_and_doctor_say_who_answers(agent: Agent) -> None:
    def told(**env: str) -> tuple[object, bool]:
        environment = os.environ | {"NATIVERT_ROOT": str(agent.root)} | env

        def ask(command: str) -> Any:
            done = subprocess.run(
                [*CLI, command, "-o", "json"], env=environment, capture_output=True
            )
            return json.loads(done.stdout)

        version, checks = ask("version"), ask("doctor")
        (check,) = (c for c in checks if c["name"] == "agent")
        return version["agent"], check["ok"]

    assert told() == ("0.1.0", True)
    assert told(NATIVERT_AGENT="no") == (None, False)


def test_a_dead_socket_is_no_agent(agent: Agent, cli: Cli) -> None:
    assert agent.end(signal.SIGKILL) == -signal.SIGKILL
    assert agent.socket.is_socket()
    done = cli("ps", "-o", "json")
    assert (done.returncode, done.stdout) == (0, "[]\n")


def test_errors_are_the_same_with_an_agent_and_without(cli: Cli, node: Node) -> None:
    start(node, name="app", shell=LOOP)
    for command in (
        ["stop", "nobody"],
        ["configure", "app"],
        ["scale", "app", "--cpuset", "999"],
        ["kill", "-s", "TERM", "a"],
        ["exec", "app", "--", "/no/such"],
        ["wait", "--timeout", "100ms", "app"],
    ):
        by_agent = cli(*command, "-o", "json")
        alone = cli("--no-agent", *command, "-o", "json")
        assert by_agent.returncode == alone.returncode
        assert by_agent.stderr == alone.stderr


def test_events_follow_with_a_cursor(cli: Cli, agent: Agent, node: Node) -> None:
    before = node.latest_event()
    follower = subprocess.Popen(
        [*CLI, "events", "-f", "--after", str(before), "-o", "json"],
        env=os.environ | {"NATIVERT_ROOT": str(agent.root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stdout is not None
        with agent.client() as client:
            start(client, name="one", shell=LOOP)  # type: ignore[arg-type]
            client.pause("one")
            client.remove("one", force=True)
        seen = []
        while not seen or seen[-1]["kind"] != "undefined":
            seen.append(json.loads(follower.stdout.readline()))
    finally:
        follower.kill()
        follower.communicate()
    assert [e["seq"] for e in seen] == list(range(before + 1, before + 1 + len(seen)))
    kinds = [e["kind"] for e in seen]
    assert kinds[:4] == ["defined", "configured", "started", "paused"]
    alone = cli("--no-agent", "events", "--after", str(before), "-o", "json").stdout
    assert [json.loads(line) for line in alone.splitlines()] == seen


def test_a_log_is_followed_and_so_are_figures(cli: Cli, agent: Agent, node: Node) -> None:
    start(node, name="app", shell="for i in 1 2 3 4 5; do echo $i; sleep 0.1; done; sleep 2")
    assert cli("logs", "-f", "app").stdout == "1\n2\n3\n4\n5\n"
    start(node, name="other", shell=LOOP)
    with subprocess.Popen(
        [*CLI, "stats", "-f", "-o", "json"],
        env=os.environ | {"NATIVERT_ROOT": str(agent.root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as figures:
        assert figures.stdout is not None
        lines = [json.loads(figures.stdout.readline()) for _ in range(2)]
        figures.kill()
    assert {line["name"] for line in lines} == {"other"}


@pytest.mark.parametrize("options", [(), ("--no-agent",)])
def test_top_shows_sorts_resizes_and_quits(
    agent: Agent, node: Node, options: tuple[str, ...]
) -> None:
    start(node, name="idle", shell="sleep 1000")
    start(node, name="busy", shell="while :; do :; done", native={"cpu": {"max": 0.2}})
    pid, master = pty.fork()
    if pid == 0:
        os.environ |= {"NATIVERT_ROOT": str(agent.root), "TERM": "xterm"}
        os.execvp(CLI[0], [*CLI, *options, "top", "--interval", "200ms"])
    seen = b""

    def until_shown(text: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + scale.LONG_S
        while text not in seen:
            ready = select.select([master], [], [], max(0.0, end - time.monotonic()))[0]
            assert ready, seen[-2000:]
            seen += os.read(master, 65536)

    until_shown(b"CPU*")
    until_shown(b"idle")
    assert seen.index(b"busy") < seen.index(b"idle")
    seen = b""
    os.write(master, b"n")
    until_shown(b"NAME*")
    seen = b""
    import termios

    termios.tcsetwinsize(master, (10, 60))
    os.write(master, b"m")
    until_shown(b"MEMORY*")
    os.write(master, b"q")
    until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid or _drained(master))
    os.close(master)


def _drained(master: int) -> bool:
    # A writer to a terminal that nobody reads never ends.
    if select.select([master], [], [], 0)[0]:
        try:
            os.read(master, 65536)
        except OSError:
            pass
    return False


def test_ps_needs_no_server_side_package(agent: Agent) -> None:
    code = (
        "import sys; from nativert.cli.main import main\n"
        "try: main(['ps'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = 'aiohttp asyncio rich sqlite3 prometheus_client pyroute2'.split()\n"
        "print(*[name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    environment = os.environ | {"NATIVERT_ROOT": str(agent.root)}
    done = subprocess.run(
        [CLI[0], "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == ""


def test_the_lifecycle_was_the_agents(agent: Agent, cli: Cli, tmp_path: Path) -> None:
    document = tmp_path / "app.json"
    document.write_text(json.dumps(make_document(shell=LOOP)))
    uuid = cli("define", str(document)).stdout.strip()
    cli("undefine", uuid)
    assert agent.log.read_text().count(f"instance={uuid}") == 2
