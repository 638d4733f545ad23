"""Attacks on init and launcher: signals, output, messages, connections."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
import scale
from nodes import (
    PYTHON,
    run_inside,
    start,
    until,
    until_logged,
)

from nativert.errors import NativertError
from nativert.isolation import process
from nativert.launcher.protocol import INIT_SOCKET, LAUNCHER_SOCKET
from nativert.runtime.node import Node
from nativert.store import boot
from nativert.store.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.netns]

KILL_AT_ONCE = {"stop": {"signal": "SIGKILL", "grace": 0}}
IDLE = "exec sleep 1000"


def init_pid(root: Path, instance: str) -> int:
    """Return the host's pid of an instance's init."""
    facts = boot.read_facts(Paths(root), instance)
    assert facts is not None
    assert facts.init_pid is not None
    return facts.init_pid


def cpu_s(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("user", [1000, "root"])
def test_no_signal_reaches_init(node: Node, root: Path, user: int | str) -> None:
    app = start(node, shell=IDLE, native={"user": user} | KILL_AT_ONCE)
    init = init_pid(root, app)
    began = process.start_time(init)
    everyone = """
import os
taken = []
for number in range(65):
    try:
        os.kill(1, number); taken.append(number)
    except PermissionError:
        pass
print(taken, flush=True)
os.kill(-1, 9)
"""
    _, text = run_inside(node, app, PYTHON, "-S", "-c", everyone)
    assert text == "[]\n"
    assert process.alive(init, began)
    ended = node.wait(app, timeout_s=scale.LONG_S)
    assert ended.end is not None
    # Its neighbour in the instance may end the application, and only that.
    assert (ended.state, ended.end.signal) == ("CONFIGURED", "SIGKILL")


FLOODS = {
    "lines": "import os\nwhile True: os.write(1, b'y\\n' * 4096)",
    "empty lines": "import os\nwhile True: os.write(1, b'\\n' * 8192)",
    "no end of line": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "single bytes": "import os\nwhile True: os.write(2, b'\\n')",
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_output_costs_init_little(node: Node, root: Path, flood: str) -> None:
    native = {"cpu": {"max": 0.5}, "logs": {"max_size": "64K", "files": 3}} | KILL_AT_ONCE
    app = start(node, python=FLOODS[flood], native=native)
    init = init_pid(root, app)
    begun = time.monotonic()
    written = int(Path(f"/proc/{init}/io").read_text().split()[3])
    time.sleep(1.5)  # What is measured is a rate.

    def answered_s() -> float:
        asked = time.monotonic()
        assert run_inside(node, app, "echo", "here") == (0, "here\n")
        return time.monotonic() - asked

    assert scale.quickest(answered_s, below_s=scale.seconds(1)) < scale.seconds(1)
    # The burst of 16 MiB and 4 MiB a second, on each of two streams.
    written = int(Path(f"/proc/{init}/io").read_text().split()[3]) - written
    assert written < 2 * (16 + 4 * (time.monotonic() - begun + 1)) * (1 << 20)

    def share() -> float:
        asked, used_s = time.monotonic(), cpu_s(init)
        time.sleep(1)  # What is measured is a rate; the burst is over.
        return (cpu_s(init) - used_s) / (time.monotonic() - asked)

    assert scale.quickest(share, below_s=scale.seconds(0.3)) < scale.seconds(0.3)
    node.stop(app)
    logs = root / "var/lib/nativert/i" / app / "log"
    # A record is at most a pipe's chunk.
    assert all(file.stat().st_size <= (64 << 10) * 2 for file in logs.iterdir())
    assert len(list(logs.iterdir())) <= 3
    memory_kb = int(Path(f"/proc/{init}/statm").read_text().split()[1]) * 4
    assert memory_kb < 32 << 10


def test_an_end_is_told_although_another_instance_holds_the_output(
    node: Node, tmp_path: Path
) -> None:
    """The writing end of its stdout, sent over a socket in a volume that two share."""
    tmp_path.chmod(0o777)
    volume = {"mounts": [{"source": str(tmp_path), "target": "/volume", "read_only": False}]}
    keep = """
import os, socket
l = socket.socket(socket.AF_UNIX); l.bind("/volume/s"); os.chmod("/volume/s", 0o777); l.listen()
print("ready", flush=True)
c, _ = l.accept()
_, fds, _, _ = socket.recv_fds(c, 1, 1)
print("has it", flush=True)
while True: os.write(fds[0], b"from another\\n")
"""
    give = """
import socket, time
s = socket.socket(socket.AF_UNIX); s.connect("/volume/s")
socket.send_fds(s, [b"x"], [1])
time.sleep(1000)
"""
    keeper = start(node, name="keeper", python=keep, native=volume | KILL_AT_ONCE)
    until_logged(node, keeper, "ready")
    giver = start(node, name="giver", python=give, native=volume | KILL_AT_ONCE)
    until_logged(node, keeper, "has it")
    begun = time.monotonic()
    stopped = node.stop(giver)
    assert time.monotonic() - begun < scale.seconds(5)
    assert stopped.state == "CONFIGURED"
    node.run(giver)
    assert node.get(giver).state == "RUNNING"


def test_sessions_that_are_dropped_cost_init_nothing(node: Node, root: Path) -> None:
    app = start(node, shell=IDLE, native=KILL_AT_ONCE)
    init = init_pid(root, app)
    before = descriptors(init)
    for tty in (False, True) * 10:
        node.exec(app, ["sleep", "1000"], stdio=(0, 1, 2), tty=tty).close()
    until(lambda: node.get(app).pids == 1)
    until(lambda: descriptors(init) <= before)


def test_a_session_outlives_its_client_only_in_a_session_of_its_own(node: Node, root: Path) -> None:
    """As after a terminal's hang-up: who has left the session goes on, until the stop."""
    app = start(node, shell=IDLE, native=KILL_AT_ONCE)
    leave = "setsid sh -c 'touch left; exec sleep 999' & sleep 998; :"
    session = node.exec(app, ["sh", "-c", leave], stdio=(0, 1, 2))
    until((root / "var/lib/nativert/i" / app / "data/left").exists)
    session.close()
    until(lambda: node.get(app).pids == 2)
    assert node.stop(app).state == "CONFIGURED"
    assert not node.get(app).pids


BAD_MESSAGES = (
    b"\xff\xff", b"[]", b"{}", b"[" * 60000, b'{"verb":{"a":1}}', b'{"verb":"run"}',
    b'{"verb":"run","run":2,"program":{}}', b'{"verb":"signal","signal":"x"}',
    b'{"verb":"signal","signal":99999999999999999999}', b'{"verb":"signal","signal":1e400}',
    b'{"verb":"exec"}', b'{"verb":"exec","program":{}}', b'{"large":true}',
    (b'{"verb":"exec","terminal":true,"rows":"x","program":{"argv":1,"env":2,"cwd":3,"uid":4,'
     b'"gid":5,"groups":6,"umask":7,"rlimits":8,"oom_score_adj":9}}'),
    b'{"verb":"create"}', b'{"verb":"create","sandbox":3}', b'{"verb":"create","sandbox":{}}',
)  # fmt: skip


def connect(directory: Path, name: str) -> socket.socket:
    """Open a connection to launcher or init without a word."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(scale.LONG_S)
        sock.connect(f"/proc/self/fd/{fd}/{name}")
    except OSError:
        sock.close()
        raise
    finally:
        os.close(fd)
    return sock


@pytest.mark.parametrize("message", BAD_MESSAGES, ids=lambda m: m[:40].decode("latin-1"))
def test_no_message_ends_init_or_launcher(node: Node, root: Path, message: bytes) -> None:
    app = start(node, shell=IDLE, native=KILL_AT_ONCE)
    init = init_pid(root, app)
    paths = Paths(root)
    before = descriptors(init)
    pipe = os.pipe()
    try:
        for place, name in ((paths.instance_run(app), INIT_SOCKET), (paths.run, LAUNCHER_SOCKET)):
            with connect(place, name) as sock:
                socket.send_fds(sock, [message], pipe)
                # An answer or the end of the connection; neither is a timeout.
                sock.recv(65536)
    finally:
        os.close(pipe[0])
        os.close(pipe[1])
    assert run_inside(node, app, "echo", "alive") == (0, "alive\n")
    until(lambda: descriptors(init) <= before)
    start(node, name="another", shell=IDLE, native=KILL_AT_ONCE)


def test_many_connections(node: Node, root: Path) -> None:
    """Half-open ones fill init's table, not its memory; the launcher goes on serving."""
    app = start(node, shell=IDLE, native=KILL_AT_ONCE)
    paths = Paths(root)
    held: list[socket.socket] = []
    try:
        for place, name in ((paths.run, LAUNCHER_SOCKET), (paths.instance_run(app), INIT_SOCKET)):
            for _ in range(1000):
                try:
                    sock = connect(place, name)
                except (BlockingIOError, ConnectionError):
                    continue  # The queue is full: what a poll loop has not accepted yet.
                held.append(sock)
        others: list[str] = []

        def started_s() -> float:
            begun = time.monotonic()
            name = f"other{len(others)}"
            others.append(start(node, name=name, shell=IDLE, native=KILL_AT_ONCE))
            return time.monotonic() - begun

        assert scale.quickest(started_s, below_s=scale.seconds(3), times=4) < scale.seconds(3)
        assert run_inside(node, others[-1], "echo", "here") == (0, "here\n")
    finally:
        for sock in held:
            sock.close()

    def served_again() -> bool:
        try:
            return run_inside(node, app, "echo", "again") == (0, "again\n")
        except NativertError:
            return False  # Init has not seen yet that they are gone.

    until(served_again)


def test_only_root_reaches_the_sockets(node: Node, root: Path, tmp_path: Path) -> None:
    app = start(node, shell=IDLE, native=KILL_AT_ONCE)
    for directory in (tmp_path, root, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    attack = """
import os, socket, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
for path in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(path)
        print("CONNECTED", path)
    except PermissionError:
        print("refused")
"""
    run = root / "run/nativert"
    os.symlink(run / "i" / app, tmp_path / "i")  # sun_path is short
    os.symlink(run, tmp_path / "r")
    sockets = [f"{tmp_path}/r/{LAUNCHER_SOCKET}", f"{tmp_path}/i/{INIT_SOCKET}"]
    done = subprocess.run(
        [PYTHON, "-c", attack, *sockets], capture_output=True, text=True, check=True
    )
    assert done.stdout == "refused\nrefused\n"
