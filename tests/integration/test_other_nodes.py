"""Three agents that know each other: each shows all, and passes on what is another's to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import serving
from nodes import CLI, MakeNode, log_text, make_descriptor, make_document, start, until
from three_nodes import APP, LONG, NAMES, Three, streams

pytestmark = [pytest.mark.root, pytest.mark.netns]


def test_each_node_shows_all(three: Three) -> None:
    three.nodes[1].define(make_descriptor(name="web"))
    for number in range(3):
        rows = three.ok(number, "node", "ls")
        assert [row["name"] for row in rows] == list(NAMES)
        assert [row["uuid"] for row in rows] == three.ids
        assert [row["alive"] for row in rows] == [True] * 3
        assert [row["own"] for row in rows] == [n == number for n in range(3)]
        assert [row["instances"] for row in rows] == [0, 1, 0]
        assert [row["addresses"] for row in rows] == [
            [f"tcp/127.0.0.1:{port}"] for port in three.ports
        ]
        assert all(abs(row["last_seen"] - time.time()) < LONG for row in rows)
    table = three.command(0, "node", "ls").stdout.splitlines()
    assert table[0].split() == ["NAME", "NODE", "ALIVE", "INSTANCES", "SEEN", "ADDRESSES"]
    assert table[1].startswith("a *")


def test_every_operation_reaches_an_instance_wherever_it_is(three: Three, tmp_path: Path) -> None:
    page = tmp_path / "app.json"
    page.write_text(json.dumps(make_document(name="web", shell=APP)))
    row = three.ok(0, "--on", "c", "define", str(page))
    assert row["node"] == "c"
    uuid = row["instance"]
    assert three.nodes[2].get(uuid).state == "DEFINED"
    for ref in ("web", uuid, uuid[:8], "c/web", f"{three.ids[2]}/web"):
        assert three.ok(0, "inspect", ref)["uuid"] == uuid
    for verb, state in (
        ("configure", "CONFIGURED"), ("start", "RUNNING"), ("pause", "PAUSED"),
        ("resume", "RUNNING"), ("restart", "RUNNING"),
    ):  # fmt: skip
        (row,) = three.ok(1, verb, "web")
        assert (row["state"], row["node"]) == (state, "c")
        assert three.nodes[2].get(uuid).state == state
    assert three.ok(0, "scale", "--pids", "50", "web")["state"] == "RUNNING"
    (figures,) = three.ok(1, "stats", "c/web")
    assert figures["pids_max"] == 50
    logged = three.command(0, "logs", "--tail", "1", "web")
    assert (logged.returncode, logged.stdout) == (0, "up\n"), logged.stderr
    three.ok(0, "kill", "web")
    (row,) = three.ok(1, "wait", "web")
    assert row["end"]["signal"] == "SIGKILL"
    three.ok(0, "start", "web")
    three.ok(0, "stop", "web")
    three.ok(0, "clean", "web")
    three.ok(0, "undefine", "web")
    assert three.nodes[2].list() == []
    events = three.command(0, "--on", "c", "events", "-o", "json").stdout.splitlines()
    assert {json.loads(line)["name"] for line in events} >= {"web"}
    gone = three.command(0, "stop", "web")
    assert (gone.returncode, "web: no such instance" in gone.stderr) == (3, True)


def test_what_is_here_wins_and_what_is_twice_elsewhere_is_ambiguous(three: Three) -> None:
    for node in three.nodes:
        node.define(make_descriptor(name="web"))
    for node in three.nodes[1:]:
        node.define(make_descriptor(name="db"))
    assert three.ok(0, "inspect", "web")["native"]["name"] == "web"
    assert three.ok(0, "rm", "web")[0]["node"] == "a"
    for ref in ("web", "db"):
        refused = three.command(0, "rm", ref)
        assert refused.returncode == 2
        assert "2 instances of other nodes" in refused.stderr
        assert f"b/{ref}" in refused.stderr
    assert three.ok(0, "rm", "b/web")[0]["node"] == "b"
    assert three.ok(0, "rm", "web")[0]["node"] == "c"
    rows = three.ok(0, "ps", "-a", "--all-nodes")
    assert sorted((row["node"], row["name"]) for row in rows) == [("b", "db"), ("c", "db")]


def test_a_log_is_followed_and_an_end_waited_for_from_afar(three: Three) -> None:
    shell = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; read end < /data/go"
    uuid = three.nodes[1].define(make_descriptor(name="web", shell=f"mkfifo /data/go; {shell}"))
    three.nodes[1].configure(uuid.instance)
    three.nodes[1].run(uuid.instance)
    found: dict[str, Any] = {}

    def ask(*words: str) -> threading.Thread:
        def work() -> None:
            found[words[0]] = three.command(0, *words)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    threads = [ask("logs", "-f", "web"), ask("wait", "web")]
    until(
        lambda: "line 19999\n" in log_text(three.nodes[1], uuid.instance),
        deadline_s=LONG,
        what="all lines",
    )
    with open(three.nodes[1].paths.instance_lib(uuid.instance) / "data" / "go", "w") as go:
        go.write("end\n")
    for thread in threads:
        thread.join(LONG)
    assert found["logs"].returncode == 0, found["logs"].stderr
    assert found["logs"].stdout == "".join(f"line {n}\n" for n in range(20000))
    assert (found["wait"].returncode, found["wait"].stdout) == (0, "0\n")


def test_a_log_of_megabytes_arrives_whole(three: Three) -> None:
    # More than may be under way at once: the reader sets the pace.
    shell = "head -c 6000000 /dev/urandom | base64 -w 1000; echo end"
    uuid = start(three.nodes[1], name="web", shell=shell)
    three.nodes[1].wait(uuid, timeout_s=LONG)
    target = f"/v1/instances/{uuid}/logs?format=text"
    status, _, here = three.agents[1].request("GET", target)
    assert (status, len(here) > 8_000_000, here[-4:]) == (200, True, b"end\n")
    status, _, afar = three.agents[0].request("GET", target)
    assert (status, afar == here) == (200, True)


def test_who_goes_away_is_not_waited_for(three: Three) -> None:
    start(three.nodes[1], name="web", shell=APP)

    environment = os.environ | {"NATIVERT_ROOT": str(three.roots[0])}
    follower = subprocess.Popen([*CLI, "logs", "-f", "web"], env=environment)
    until(
        lambda: streams(three.agents[1]) == 1,
        deadline_s=LONG,
        what="the log is followed",
    )
    follower.terminate()
    follower.wait(LONG)
    until(
        lambda: streams(three.agents[1]) == 0,
        deadline_s=LONG,
        what="nobody follows any more",
    )
    three.ok(0, "stop", "web")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_that_dies_is_seen_gone_and_the_others_go_on(
    three: Three, number: signal.Signals, tell: Callable[[str], None]
) -> None:
    uuid = start(three.nodes[2], name="web", shell=APP)
    three.nodes[1].define(make_descriptor(name="db"))
    assert three.ok(0, "inspect", "web")["uuid"] == uuid
    waiting: list[subprocess.CompletedProcess[str]] = []
    waiter = threading.Thread(target=lambda: waiting.append(three.command(0, "wait", "web")))
    waiter.start()
    agent = three.agents[2]
    until(lambda: streams(agent) == 1, deadline_s=LONG, what="the wait has come there")
    agent.process.send_signal(number)
    began = time.monotonic()
    try:
        for n in (0, 1):
            until(lambda n=n: not three.alive(n)["c"], deadline_s=LONG, what="c is gone")  # type: ignore[misc]
        tell(f"{number.name}: gone for both after {time.monotonic() - began:.2f} s")
        waiter.join(LONG)
        assert waiting[0].returncode == 5
        assert "node c" in waiting[0].stderr
        for ref in ("web", "c/web", uuid):
            refused = three.command(0, "stop", ref)
            assert refused.returncode == 5
            assert "node c is gone" in refused.stderr
        (gone,) = (row for row in three.ok(0, "node", "ls") if row["name"] == "c")
        assert (gone["alive"], gone["instances"]) == (False, None)
        assert gone["last_seen"] <= time.time()
        assert [row["node"] for row in three.ok(0, "ps", "-a", "--all-nodes")] == ["b"]
        assert three.ok(0, "configure", "db")[0]["state"] == "CONFIGURED"
        assert three.ok(1, "clean", "db")[0]["state"] == "DEFINED"
        assert three.nodes[2].get(uuid).state == "RUNNING"
    finally:
        if number is signal.SIGSTOP:
            agent.process.send_signal(signal.SIGCONT)
    if number is signal.SIGKILL:
        agent.process.wait(LONG)
        three.agents[2] = three.serve(2)
    until(three.met, deadline_s=LONG, what="it is there again")
    assert three.ok(0, "stop", "web")[0]["state"] == "CONFIGURED"


def test_without_other_nodes_the_answers_are_clear(
    tmp_path: Path, make_node: MakeNode, root: Path
) -> None:
    make_node()
    environment = os.environ | {"NATIVERT_ROOT": str(root)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLI, *words], env=environment, capture_output=True, text=True, timeout=LONG
        )

    for words in (("node", "ls"), ("ps", "--all-nodes"), ("--on", "b", "ps")):
        alone = run(*words)
        assert alone.returncode == 5
        assert "none serves this node" in alone.stderr
    with serving(root):
        (row,) = json.loads(run("node", "ls", "-o", "json").stdout)
        assert (row["own"], row["alive"], row["addresses"]) == (True, True, [])
        assert run("ps", "--all-nodes").returncode == 0
        for words in (("--on", "b", "ps"), ("stop", "b/web")):
            refused = run(*words)
            assert refused.returncode == 5
            assert "[zenoh]" in refused.stderr
        assert run("stop", "web").returncode == 3
        assert run("--on", "b", "backup", "x").returncode == 2
