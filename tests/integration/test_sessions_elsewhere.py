"""Programs inside an instance of another node, and files that are put into it, by two agents."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import termios
import time
from pathlib import Path

import pytest
import scale
from nodes import CLI, make_descriptor, start, until
from three_nodes import APP, LONG, Three, streams

pytestmark = [pytest.mark.root, pytest.mark.netns]


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
            [*CLI, "exec", "-i", "web", "--", "/bin/sh", "-c", "echo up; exec sleep 100"],
            env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
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
    until(lambda: streams(three.agents[1]) == 0, deadline_s=LONG, what="nothing is received")
    assert sorted(path.name for path in data.iterdir()) == ["copy0", "copy1", "copy2"]


def _closed() -> int:
    """Return the writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing
