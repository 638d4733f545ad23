"""Three agents that know each other: each shows all, and passes on what is another's to do."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import scale
from agents import Agent, serving
from fog05_clients import config, free_port
from nodes import CLI, MakeNode, log_text, make_descriptor, make_document, start, until

from nativert.runtime.node import Node
from nativert.store.claims import Claims
from nativert.store.identity import open_identity
from nativert.store.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.netns]

LONG = scale.seconds(40)
APP = "echo up; exec sleep 1000"
NAMES = ("a", "b", "c")


class Three:
    """The nodes a, b and c; commands are asked of one of them."""

    def __init__(self, tmp_path: Path, make_node: MakeNode) -> None:
        self.ports = [free_port() for _ in NAMES]
        self.roots = [tmp_path / name / "node" for name in NAMES]
        for name, root in zip(NAMES, self.roots, strict=True):
            root.parent.mkdir()
            open_identity(Paths(root), Claims(), name=name)
        self.nodes: list[Node] = [make_node(root) for root in self.roots]
        self.ids = [node.identity.id for node in self.nodes]
        self.stack = ExitStack()
        self.agents = [self.serve(number) for number in range(len(NAMES))]

    def serve(self, number: int) -> Agent:
        others = [port for port in self.ports if port != self.ports[number]]
        text = config(self.ports[number], *others)
        return self.stack.enter_context(serving(self.roots[number], config=text))

    def command(self, number: int, *words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"NATIVERT_ROOT": str(self.roots[number])}
        return subprocess.run(
            [*CLI, *words], env=environment, capture_output=True, text=True, timeout=LONG
        )

    def ok(self, number: int, *words: str) -> Any:
        done = self.command(number, *words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def alive(self, number: int) -> dict[str, bool]:
        status, rows = self.agents[number].ask("GET", "/v1/nodes")
        assert status == 200, rows
        return {row["name"]: row["alive"] for row in rows if row["name"]}

    def met(self) -> bool:
        return all(self.alive(n) == dict.fromkeys(NAMES, True) for n in range(len(NAMES)))


@pytest.fixture
def three(tmp_path: Path, make_node: MakeNode) -> Iterator[Three]:
    one = Three(tmp_path, make_node)
    with one.stack:
        until(one.met, deadline_s=LONG, what="all see all")
        yield one


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
    until(lambda: _streams(three.agents[1]) == 1, deadline_s=LONG, what="the log is followed")
    follower.terminate()
    follower.wait(LONG)
    until(lambda: _streams(three.agents[1]) == 0, deadline_s=LONG, what="nobody follows any more")
    three.ok(0, "stop", "web")


def test_a_program_runs_inside_from_afar(three: Three, tmp_path: Path) -> None:
    start(three.nodes[1], name="web", shell=APP)
    hostname = three.command(1, "exec", "web", "--", "hostname").stdout
    for words in (("exec", "web"), ("exec", "b/web"), ("--on", "b", "exec", "web")):
        for number in range(3):
            done = three.command(number, *words, "--", "hostname")
            assert (done.returncode, done.stdout) == (0, hostname), done.stderr
    script = "echo out $WHO; echo err >&2; exit 7"
    done = three.command(0, "exec", "--env", "WHO=me", "web", "--", "/bin/sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out me\n", "err\n")
    # Both ways at once, more than may be under way, as it is and in order.
    data = os.urandom(20_000_000)
    environment = os.environ | {"NATIVERT_ROOT": str(three.roots[0])}
    words = ("exec", "-i", "web", "--", "cat")
    copied = subprocess.run(
        [*CLI, *words], env=environment, input=data, capture_output=True, timeout=LONG
    )
    assert (copied.returncode, copied.stderr) == (0, b"")
    assert copied.stdout == data
    # A program that takes its time to read does not keep its output back.
    source = tmp_path / "source"
    source.write_bytes(data)
    for script, wanted in (
        ("cat", data),
        ("seq 300000; wc -c", b"".join(b"%d\n" % n for n in range(1, 300_001)) + b"20000000\n"),
        ("exit 3", b""),
    ):
        with source.open("rb") as stdin:
            words = ("exec", "-i", "web", "--", "/bin/sh", "-c", script)
            copied = subprocess.run(
                [*CLI, *words], env=environment, stdin=stdin, capture_output=True, timeout=LONG
            )
        assert (copied.returncode, copied.stderr) == (3 if script == "exit 3" else 0, b"")
        assert copied.stdout == wanted
    # Nobody reads: the program ends as one that writes into a closed pipe.
    ended = subprocess.run(
        [*CLI, "exec", "web", "--", "yes"], env=environment, stdout=_closed(), timeout=LONG
    )
    assert ended.returncode == 128 + signal.SIGPIPE
    for program, code in (("/bin/no", 127), ("/etc/hostname", 126)):
        refused = three.command(0, "exec", "web", "--", program)
        assert refused.returncode == code
        assert program in refused.stderr
    refused = three.command(0, "exec", "nobody", "--", "true")
    assert (refused.returncode, "nobody: no such instance" in refused.stderr) == (3, True)
    three.ok(0, "rm", "--force", "web")
    three.nodes[1].define(make_descriptor(name="web"))
    refused = three.command(0, "exec", "web", "--", "true")
    assert (refused.returncode, "DEFINED" in refused.stderr) == (4, True), refused.stderr


def test_a_terminal_inside_from_afar(three: Three) -> None:
    start(three.nodes[1], name="web", shell=APP)
    environment = os.environ | {"NATIVERT_ROOT": str(three.roots[0])}
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (33, 99))
    shell = subprocess.Popen(
        [*CLI, "exec", "-it", "web", "--", "/bin/sh"],
        env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""

    def until_shown(what: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + LONG
        while what not in shown:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(ours, 65536)

    os.write(ours, b"stty size; tty; echo got$((1+1))\n")
    until_shown(b"got2")
    assert b"33 99" in shown
    assert b"/dev/pts/" in shown
    termios.tcsetwinsize(ours, (44, 111))
    os.kill(shell.pid, signal.SIGWINCH)
    os.write(ours, b"sleep 0.2; stty size; echo got$((2+2))\n")
    until_shown(b"got4")
    assert b"44 111" in shown
    os.write(ours, b"sleep 100 || echo ended$((3+3))\n")
    until_shown(b"ended$")
    until(lambda: len(_programs(three)) == 3, deadline_s=LONG, what="the sleep")
    os.write(ours, b"\x03")  # Ctrl-C ends what runs on that terminal, not this command.
    until(lambda: len(_programs(three)) == 2, deadline_s=LONG, what="no sleep")
    os.write(ours, b"exit 9\n")
    assert shell.wait(LONG) == 9
    os.close(ours)


def _programs(three: Three) -> list[int]:
    uuid = three.nodes[1].get("web").instance
    return three.nodes[1]._context.driver.open(f"i-{uuid}").pids()


def test_who_reads_slowly_reads_all(three: Three) -> None:
    start(three.nodes[1], name="web", shell=APP)
    environment = os.environ | {"NATIVERT_ROOT": str(three.roots[0])}
    script = "seq 300000; exit 5"
    with subprocess.Popen(
        [*CLI, "exec", "web", "--", "/bin/sh", "-c", script],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        # As in front of a pager: longer than a WebSocket is waited for elsewhere.
        time.sleep(12)
        shown, told = running.communicate(timeout=LONG)
    assert (running.returncode, told) == (5, "")
    assert shown == "".join(f"{n}\n" for n in range(1, 300_001))


@pytest.mark.parametrize("backlog", [False, True])
@pytest.mark.parametrize("who", ["command", "agent here", "agent there"])
def test_a_program_inside_ends_with_whoever_is_between(
    three: Three, who: str, backlog: bool, tmp_path: Path
) -> None:
    start(three.nodes[1], name="web", shell=APP)
    environment = os.environ | {"NATIVERT_ROOT": str(three.roots[0])}
    # With a backlog nobody reads from whom the news of an end would come.
    source = tmp_path / "source"
    source.write_bytes(bytes(5_000_000 if backlog else 0))
    with source.open("rb") as stdin:
        running = subprocess.Popen(
            [*CLI, "exec", "-i", "web", "--", "sleep", "100"],
            env=environment, stdin=stdin, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    until(lambda: len(_programs(three)) == 2, deadline_s=LONG, what="the program")
    time.sleep(scale.seconds(0.5))
    victim = {"command": running, "agent here": three.agents[0].process}
    victim.get(who, three.agents[1].process).kill()
    until(lambda: len(_programs(three)) == 1, deadline_s=LONG, what="only the application")
    _, told = running.communicate(timeout=LONG)
    if who != "command":
        assert running.returncode == 125
        assert ("agent went away" in told) == (who == "agent here"), told
        assert ("node b went away" in told) == (who == "agent there"), told
    for number in (0, 1):
        if three.agents[number].process.poll() is not None:
            three.agents[number] = three.serve(number)


def test_files_are_put_from_afar(three: Three, tmp_path: Path) -> None:
    start(three.nodes[1], name="web", shell=APP)
    data = three.nodes[1].paths.instance_lib(three.nodes[1].get("web").instance) / "data"
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20_000_000))
    source.chmod(0o640)
    for number, words in enumerate((("put", "web"), ("put", "b/web"), ("--on", "b", "put", "web"))):
        placed = three.ok(0, *words, str(source), f"copy{number}")
        assert placed["size_bytes"] == 20_000_000
        copy = data / f"copy{number}"
        assert copy.read_bytes() == source.read_bytes()
        assert copy.stat().st_mode & 0o777 == 0o640
    for path, code, told in (("no/x", 3, "no/x"), ("../x", 2, "../x"), ("copy0/x", 3, "copy0")):
        refused = three.command(0, "put", "web", str(source), path)
        assert (refused.returncode, told in refused.stderr) == (code, True), refused.stderr
    # One that is broken off puts nothing.
    head = f"PUT /v1/instances/web/file?path=half HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 20}"
    with socket.socket(socket.AF_UNIX) as sock:
        directory = os.open(three.agents[0].socket.parent, os.O_PATH)
        sock.connect(f"/proc/self/fd/{directory}/{three.agents[0].socket.name}")
        os.close(directory)
        sock.sendall(head.encode() + b"\r\n\r\n" + bytes(1 << 19))
        time.sleep(scale.seconds(0.5))
    until(lambda: _streams(three.agents[1]) == 0, deadline_s=LONG, what="nothing is received")
    assert sorted(path.name for path in data.iterdir()) == ["copy0", "copy1", "copy2"]


def _streams(agent: Agent) -> float:
    text = agent.request("GET", "/metrics")[2].decode()
    line = next(x for x in text.splitlines() if x.startswith("nativert_agent_streams "))
    return float(line.split()[1])


def _closed() -> int:
    """Return the writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


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
    until(lambda: _waits(agent), deadline_s=LONG, what="the wait has come there")
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


def _waits(agent: Agent) -> bool:
    text = agent.request("GET", "/metrics")[2].decode()
    return "nativert_agent_streams 1.0" in text


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
