"""Sessions in an instance for real: their streams, their terminals, and how they end."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sandboxes import DEADLINE_S, MAX_IDLE, Instance, program, real_launcher, shell, until

from nativert.launcher import protocol
from nativert.launcher.client import ReportedError

pytestmark = pytest.mark.root


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with real_launcher(tmp_path) as launcher:
        yield launcher.create()


def test_a_session_has_the_given_streams_and_no_other_descriptor(instance: Instance) -> None:
    assert instance.output("ls /proc/self/fd | tr '\\n' ' '") == "0 1 2 3 "
    assert instance.exec(shell("exit 42")) == 42
    assert instance.exec(shell("kill -TERM $$")) == -signal.SIGTERM


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_wrong_number_of_streams_is_refused(instance: Instance, count: int) -> None:
    before = instance.descriptors()
    null = os.open("/dev/null", os.O_RDWR)
    with instance.channel() as channel, pytest.raises(ReportedError, match="three descriptors"):
        channel.call({"verb": "exec", "program": shell("true")}, [null] * count)
    os.close(null)
    until(lambda: instance.descriptors() <= before)


def everything(master: int) -> bytes:
    """Return what was written to a terminal that nobody holds any more."""
    # The kernel hands it over piece by piece, and says EIO behind the last.
    data = b""
    while True:
        try:
            data += os.read(master, 4096)
        except OSError:
            return data


def test_a_terminal_is_the_sessions_own(instance: Instance) -> None:
    text = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all"
    with instance.channel() as channel:
        message = {"verb": "exec", "terminal": True, "rows": 33, "columns": 99}
        answer, (master,) = channel.call(message | {"program": shell(text)})
        assert answer == {"terminal": True}
        assert channel.receive(DEADLINE_S)[0]["ok"]
        assert channel.receive(DEADLINE_S)[0] == {"event": "exit", "code": 0}
        out = everything(master).decode().split()
        os.close(master)
    assert out == ["/dev/pts/0", "33", "99", "all"]


def test_a_terminal_sends_its_signals_and_sizes(instance: Instance) -> None:
    text = (
        "trap 'echo int' INT; trap 'stty size; exit 7' WINCH; echo go; while :; do sleep 0.05; done"
    )
    with instance.channel() as channel:
        _, (master,) = channel.call({"verb": "exec", "terminal": True, "program": shell(text)})
        assert channel.receive(DEADLINE_S)[0]["ok"]
        out = b""
        while b"go" not in out:
            out += os.read(master, 4096)
        os.write(master, b"\x03")
        while b"int" not in out:
            out += os.read(master, 4096)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 11, 22, 0, 0))
        while b"11 22" not in out:
            out += os.read(master, 4096)
        assert channel.receive(DEADLINE_S)[0]["code"] == 7
        os.close(master)


@pytest.mark.parametrize("size", [(-1, 80), (1 << 20, 80), ("a", "b"), (None, None)])
def test_a_terminal_of_no_size_is_refused(instance: Instance, size: tuple[Any, Any]) -> None:
    before = instance.descriptors()
    message = {"verb": "exec", "terminal": True, "rows": size[0], "columns": size[1]}
    with instance.channel() as channel, pytest.raises(ReportedError):
        channel.call(message | {"program": shell("true")})
    until(lambda: instance.descriptors() <= before)


def test_a_session_ends_with_its_client(instance: Instance) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    before = instance.descriptors()
    for wait in (True, False):
        for _ in range(20):
            channel = instance.channel()
            message = {"verb": "exec", "program": shell("trap '' HUP; sleep 600")}
            if wait:
                channel.call(message, (null, null, null))
            else:
                protocol.send(channel.sock, message, (null, null, null))
            channel.close()
    for _ in range(20):
        channel = instance.channel()
        # One that ends by itself at the same moment.
        protocol.send(channel.sock, {"verb": "exec", "program": program("/no")}, (null,) * 3)
        channel.close()
    os.close(null)
    until(lambda: instance.descriptors() <= before, "descriptors are back")
    # What a session's program had started is killed with it, and reaped by init a little later.
    until(lambda: instance.processes() <= MAX_IDLE, "processes are gone")


def test_too_many_sessions_are_refused_and_stopping_goes_on(instance: Instance) -> None:
    instance.run(shell("sleep 600"))
    null = os.open("/dev/null", os.O_RDWR)
    channels = [instance.channel() for _ in range(64)]
    message = {"verb": "exec", "program": shell("sleep 600")}
    for channel in channels:
        channel.call(message, (null, null, null))
    with instance.channel() as one_more, pytest.raises(ReportedError) as refused:
        one_more.call(message, (null, null, null))
    assert refused.value.errno == errno.EAGAIN
    os.close(null)
    assert instance.call("signal", signal=9, all=True) == {"ok": True}
    for channel in channels:
        assert channel.receive(DEADLINE_S)[0] == {"event": "exit", "code": -9}
        channel.close()
    until(lambda: instance.call("status")["state"] == "idle")
