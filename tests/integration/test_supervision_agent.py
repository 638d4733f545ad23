"""The agent as a process supervises, and dies: what it watched goes on, the next one knows all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from agents import Agent, serving
from nodes import CLI, driver_of, ended, make_document, until

from nativert.errors import TransitionError
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

Cli = Callable[..., subprocess.CompletedProcess[str]]
SLEEP = "echo begun; exec sleep 1000"
QUICK = "[supervision]\nreconcile_s = 0.2\n"


def begin(cli: Cli, tmp_path: Path, name: str, **fields: object) -> None:
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(make_document(name=name, **fields)))  # type: ignore[arg-type]
    for argv in (["define", str(file)], ["configure", name], ["start", name]):
        done = cli(*argv)
        assert done.returncode == 0, done.stderr


def test_killed_it_leaves_all_running_and_the_next_one_goes_on(
    cli: Cli, node: Node, root: Path, tmp_path: Path
) -> None:
    always = {"restart": {"policy": "always", "backoff": "200ms", "backoff_max": "400ms"}}
    with serving(root, config=QUICK) as first:
        for name in ("stays", "ends"):
            begin(cli, tmp_path, name, shell=SLEEP, veth=True, native=always)
        begin(cli, tmp_path, "plain", shell=SLEEP)
        pids = {row.name: row.pid or 0 for row in node.list()}
        os.kill(pids["ends"], signal.SIGKILL)
        until(lambda: node.get("ends").restarts == 1, what="the agent starts it again")
        until(lambda: (node.get("ends").pid or 0) > 0)
        first.process.kill()
        first.process.wait()
    pids = {row.name: row.pid or 0 for row in node.list()}
    assert all(pids.values())
    # Nobody is there now: these ends are seen by init alone.
    for name in ("ends", "plain"):
        os.kill(pids[name], signal.SIGKILL)
    cursor = node.latest_event()
    with serving(root, config=QUICK) as second:
        until(lambda: node.get("ends").restarts == 2, what="the next agent starts it again")
        until(lambda: node.get("plain").state == "CONFIGURED", what="the other one has ended")
        assert ended(node.get("plain")).signal == "SIGKILL"

        def told() -> set[tuple[str, str]]:
            ends = [event for event in node.events(cursor) if event.kind == "ended"]
            return {(event.name, event.data["end"]["signal"]) for event in ends}

        # The agent tells it, after it has noted the end.
        until(lambda: told() == {(name, "SIGKILL") for name in ("ends", "plain")}, what="both ends")
        assert node.get("stays").pid == pids["stays"]
        assert node.get("stays").restarts == 0
        launcher = driver_of(root).open("launcher").pids()
        for pid in launcher:
            os.kill(pid, signal.SIGKILL)
        os.kill(node.get("stays").pid or 0, signal.SIGKILL)
        until(lambda: node.get("stays").restarts == 1, what="started again without a launcher")
        done = cli("stop", "ends", "stays")
        assert done.returncode == 0, done.stderr
        assert second.end() == 0
    assert {row.state for row in node.list()} == {"CONFIGURED"}


def test_a_limit_that_was_wiped_is_repaired_by_the_agent(
    cli: Cli, node: Node, root: Path, tmp_path: Path
) -> None:
    with serving(root, config=QUICK):
        begin(cli, tmp_path, "app", shell=SLEEP, native={"pids": {"max": 20}})
        cgroup = driver_of(root).open(f"i-{node.get('app').instance}")
        assert cgroup.read().pids_max == 20
        for directory in Path("/sys/fs/cgroup").rglob(f"{cgroup.name}/pids.max"):
            directory.write_text("max")
        until(lambda: cgroup.read().pids_max == 20, what="the limit is back")
        until(lambda: any(e.kind == "repaired" for e in node.events()), what="it is told")


def test_the_log_of_one_that_is_started_again_is_followed_to_its_last_end(
    cli: Cli, root: Path, tmp_path: Path
) -> None:
    thrice = {"restart": {"policy": "always", "max": 3, "backoff": "200ms", "backoff_max": "200ms"}}
    with serving(root):
        begin(cli, tmp_path, "app", shell="echo begun; sleep 0.3; exit 1", native=thrice)
        done = cli("logs", "-f", "app")
    assert (done.returncode, done.stdout) == (0, "begun\n" * 4)


def under_way(agent: Agent) -> float:
    """How many requests are being answered, this one among them."""
    _, _, text = agent.request("GET", "/metrics")
    found = re.search(rb"^nativert_agent_requests_in_flight (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_starts_that_wait_for_another_keep_nobody_waiting(
    cli: Cli, root: Path, tmp_path: Path
) -> None:
    never = {"health": {"exec": ["false"], "interval": "100ms", "retries": 1000}}
    environment = os.environ | {"NATIVERT_ROOT": str(root)}
    with serving(root) as agent:
        begin(cli, tmp_path, "db", shell=SLEEP, native=never)
        starting = []
        # More than the agent has threads for what is quick.
        for number in range(10):
            file = tmp_path / "app.json"
            file.write_text(
                json.dumps(make_document(name=f"app{number}", shell=SLEEP, depends_on=["db"]))
            )
            assert cli("define", str(file)).returncode == 0
            assert cli("configure", f"app{number}").returncode == 0
        for number in range(10):
            argv = [*CLI, "start", f"app{number}"]
            starting.append(
                subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
            )
        with agent.client() as client:
            # The requests are under way once the agent has counted them.
            until(lambda: under_way(agent) > 10, what="all starts have come")
            assert {row.state for row in client.list()} == {"RUNNING", "CONFIGURED"}
            assert [process.poll() for process in starting] == [None] * 10

            def all_ended() -> bool:
                # One whose turn came late has begun with db again.
                with contextlib.suppress(TransitionError):
                    client.stop("db")
                return all(process.poll() is not None for process in starting)

            try:
                until(all_ended, pause_s=0.1, what="all starts end with what they wait for")
            finally:
                for process in starting:
                    process.kill()
                told = [process.communicate()[1] for process in starting]
        assert all(process.returncode > 0 for process in starting)
        assert all("its dependency db does not run" in text for text in told)
