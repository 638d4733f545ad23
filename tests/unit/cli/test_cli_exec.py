"""`exec`: streams, exit codes, and a terminal in front of a terminal."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import scale

from nativert.errors import Code, NativertError

DEADLINE_S = scale.LONG_S


def test_the_program_has_our_streams_and_its_exit_code_passes_through(node, nativert):
    node.add("web", "RUNNING")
    result = nativert(
        "exec", "--env", "A=1", "web", "--", "sh", "-c", "echo $A; echo e >&2; exit 9"
    )
    assert result == (9, "1\n", "e\n")


def test_options_behind_the_instance_belong_to_the_program(node, nativert):
    node.add("web", "RUNNING")
    assert nativert("exec", "web", "echo", "-o", "json", "--", "-i").out == "-o json -- -i\n"


def test_stdin_is_empty_unless_asked_for(node, nativert):
    node.add("web", "RUNNING")
    reader, writer = os.pipe()
    os.write(writer, b"typed\n")
    os.close(writer)
    stdin = os.dup(0)
    os.dup2(reader, 0)
    try:
        assert nativert("exec", "web", "cat").out == ""
        assert nativert("exec", "-i", "web", "cat").out == "typed\n"
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(reader)


@pytest.mark.parametrize(
    ("code", "exit_code"), [(Code.COMMAND_NOT_FOUND, 127), (Code.NOT_EXECUTABLE, 126)]
)
def test_a_program_that_cannot_be_started(node, nativert, code, exit_code):
    node.add("web", "RUNNING")
    node.fail["exec"] = NativertError("nothing: no such program", code=code)
    assert nativert("exec", "web", "nothing").code == exit_code


def test_an_instance_that_is_not_there_is_3(node, nativert):
    assert nativert("exec", "nobody", "true").code == 3


def test_nativert_failing_after_the_start_is_125(node, nativert, monkeypatch):
    from cli_fake_node import FakeSession

    def lost(_session: FakeSession) -> int:
        raise NativertError("init lost")

    node.add("web", "RUNNING")
    wait = FakeSession.wait
    monkeypatch.setattr(FakeSession, "wait", lambda session: (wait(session), lost(session))[1])
    result = nativert("exec", "web", "true")
    assert (result.code, result.err) == (125, "nativert: init lost\n")


def test_a_terminal_needs_a_terminal(node, nativert):
    node.add("web", "RUNNING")
    with open(os.devnull) as nothing:
        code = "import sys; from nativert.cli.main import main; main(sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, "exec", "-it", "web", "sh"],
            stdin=nothing,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "nativert: stdin is not a terminal (leave out -t)\n"


class Terminal:
    """An operator's terminal with `nativert exec` in it."""

    def __init__(self, master: int, slave: int, process: subprocess.Popen[bytes]) -> None:
        self.master = master
        self.slave = slave
        self.process = process
        self.seen = b""

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} did not come: {self.seen!r}"
            self.seen += os.read(self.master, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def terminal(*args: str) -> Iterator[Terminal]:
    code = f"""
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from cli_fake_node import FakeNode
from nativert.cli import context, main
fake = FakeNode()
fake.add("web", "RUNNING")
context.open_node = fake.open
main.main({["exec", *args]!r})
"""
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    shown = Terminal(master, slave, process)
    shown.resize(33, 101)
    try:
        yield shown
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
        os.close(slave)


def _echoes(fd: int) -> bool:
    return bool(termios.tcgetattr(fd)[3] & termios.ECHO)


def test_keys_window_size_and_exit_code_go_through_and_the_terminal_comes_back():
    program = "stty size; trap 'stty size; echo resized' WINCH; echo ready; while :; do read x && "
    program += 'echo "got $x" && test "$x" = end && exit 42; done'
    with terminal("-it", "web", "--", "sh", "-c", program) as shown:
        shown.expect(b"33 101\r\n")
        shown.expect(b"ready")
        assert not _echoes(shown.slave)
        shown.resize(12, 34)
        # A shell runs its trap after the read, which the signal interrupts or a key ends.
        shown.type(b"hello\r")
        shown.expect(b"got hello")
        shown.expect(b"12 34\r\nresized")
        shown.type(b"end\r")
        shown.expect(b"got end")
        assert shown.process.wait(DEADLINE_S) == 42
        assert _echoes(shown.slave)


def test_control_c_goes_to_the_program():
    program = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    with terminal("-it", "web", "--", "sh", "-c", program) as shown:
        shown.expect(b"ready")
        shown.type(b"\x03")
        shown.expect(b"caught")
        assert shown.process.wait(DEADLINE_S) == 5


def test_a_signal_to_the_command_gives_the_terminal_back():
    with terminal("-it", "web", "--", "sh", "-c", "echo ready; exec sleep 30") as shown:
        shown.expect(b"ready")
        assert not _echoes(shown.slave)
        shown.process.send_signal(signal.SIGTERM)
        assert shown.process.wait(DEADLINE_S) == 143
        assert _echoes(shown.slave)
        shown.expect(b"interrupted by SIGTERM")


def test_a_child_that_keeps_the_terminal_does_not_keep_the_command():
    program = "trap '' HUP; sleep 30 & echo pid $!; exit 3"
    with terminal("-t", "web", "--", "sh", "-c", program) as shown:
        shown.expect(b"pid ")
        assert shown.process.wait(DEADLINE_S) == 3
        os.kill(int(shown.seen.partition(b"pid ")[2].split()[0]), signal.SIGKILL)


def test_much_output_and_much_input_go_through():
    program = "stty raw -echo; echo ready; head -c 200000 | wc -c; head -c 3000000 /dev/zero"
    with terminal("-it", "web", "--", "sh", "-c", program) as shown:
        shown.expect(b"ready")
        os.set_blocking(shown.master, False)
        left = b"k" * 200000
        deadline = time.monotonic() + DEADLINE_S
        while left:
            _, ready, _ = select.select([], [shown.master], [], deadline - time.monotonic())
            assert ready
            left = left[os.write(shown.master, left) :]
        shown.expect(b"200000")
        shown.expect(b"\0" * 3000000)
        assert shown.process.wait(DEADLINE_S) == 0
