"""Messages to an init: names of any bytes arrive whole, and no message ends it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scale
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sandboxes import DEADLINE_S, Instance, program, real_launcher, shell, until

from nativert.isolation.cgroups.hierarchies import mounted
from nativert.launcher import protocol
from nativert.launcher.client import ReportedError

pytestmark = pytest.mark.root

BYTES = os.fsdecode(b'\xff\x80 \xc3\xa9\xed\xa0\x80\n"\\')


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with real_launcher(tmp_path) as launcher:
        yield launcher.create()


def test_arguments_and_variables_of_any_bytes_arrive_whole(instance: Instance) -> None:
    assert instance.printed(program("printf", "%s", BYTES)) == os.fsencode(BYTES)
    plan = shell('printf "%s" "$V"', env={"PATH": "/usr/bin:/bin", "V": BYTES})
    assert instance.printed(plan) == os.fsencode(BYTES)


def test_names_of_any_bytes_are_told_whole(instance: Instance) -> None:
    for changes, step in (({"cwd": f"/no/{BYTES}"}, "working directory"), ({}, "exec")):
        with pytest.raises(ReportedError) as failed:
            instance.exec(program(f"/no/{BYTES}", **changes))
        assert (failed.value.step, failed.value.errno) == (step, errno.ENOENT)
        assert failed.value.filename == f"/no/{BYTES}"


def test_what_is_no_name_is_refused_before_anything_starts(instance: Instance) -> None:
    for changes in (
        {"argv": ["\ud800"]},
        {"env": {"\ud800": "x"}},
        {"env": {"V": "\udfff"}},
        {"env": {"V": "a\0b"}},
        {"env": {"": "x"}},
        {"env": {"A=B": "x"}},
        {"cwd": "/tmp\0"},
        {"uid": -1},
        {"uid": 0xFFFFFFFF},
        {"gid": 1 << 32},
        {"groups": [0xFFFFFFFF]},
        {"umask": 0o1000},
    ):
        with pytest.raises(ReportedError):
            instance.run(program("/bin/true", **changes))
        assert instance.call("status")["state"] == "idle"


def test_a_program_of_megabytes_is_started(instance: Instance) -> None:
    arguments = ["x" * 100_000] * 15
    plan = program("/bin/sh", "-c", "echo $#", "sh", *arguments)
    assert instance.printed(plan) == b"15\n"


def test_the_end_tells_which_signal_was_asked_for(instance: Instance) -> None:
    with instance.channel() as channel:
        channel.call({"verb": "run", "run": 1, "program": shell("sleep 60"), "follow": True})
        channel.call({"verb": "signal", "signal": int(signal.SIGTERM)})
        end = channel.receive(DEADLINE_S)[0]["end"]
    assert (end["signal"], end["asked"]["signal"]) == (signal.SIGTERM, signal.SIGTERM)
    assert end["started_at"] <= end["asked"]["at"] <= end["ended_at"]
    assert instance.run_to_end(shell("exit 1"), 2)["asked"] is None


@pytest.mark.parametrize(
    "cgroup",
    [
        None,
        1,
        {},
        {"tasks": None},
        {"tasks": ["0"]},
        {"tasks": [0]},
        {"tasks": [-1]},
        {"tasks": [2]},
        {"tasks": [1 << 62]},
        {"tasks": [1] * 17},
        {"tasks": [], "into": 0},
        {"tasks": [], "into": "1"},
        {"tasks": [1, 1], "into": 1, "oom": 0},
        {"tasks": [1, 1], "into": 1, "oom": 7},
    ],
)
def test_a_cgroup_that_is_none_takes_no_ones_place(instance: Instance, cgroup: object) -> None:
    """Descriptor 0 is no cgroup's, 1 is one: nothing of what came is kept."""
    fds = [os.open(path, os.O_RDONLY) for path in ("/dev/null", a_cgroup())]
    before = instance.descriptors()
    try:
        with instance.channel() as channel, pytest.raises(ReportedError):
            channel.call({"verb": "status", "cgroup": cgroup}, fds)
    finally:
        for fd in fds:
            os.close(fd)
    until(lambda: instance.descriptors() <= before, "descriptors are back")
    assert instance.run_to_end(shell("exit 5"))["exit_code"] == 5


def a_cgroup() -> str:
    found = mounted(Path("/sys/fs/cgroup"))
    return str(found.unified or next(iter(found.v1.values())))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
VERBS = st.sampled_from(["hello", "status", "run", "exec", "script", "signal", "create", ""])
KEYS = st.sampled_from(
    ["run", "program", "signal", "all", "follow", "pidfd", "terminal", "rows", "cgroup"]
)
FIELDS = st.sampled_from(list(program("x")))


@st.composite
def messages(draw: Any) -> protocol.Message:
    message: dict[str, Any] = {"verb": draw(VERBS), "signal": 0, "run": 1}
    plan = program("/bin/true")
    for _ in range(draw(st.integers(0, 2))):
        plan[draw(FIELDS)] = draw(ANYTHING)
    message["program"] = plan
    for _ in range(draw(st.integers(0, 2))):
        message[draw(KEYS)] = draw(ANYTHING)
    return message


def test_no_message_ends_init_or_costs_it_a_descriptor(instance: Instance) -> None:
    before = instance.descriptors()
    null = os.open("/dev/null", os.O_RDWR)
    sent = 0

    @settings(max_examples=scale.count(150), suppress_health_check=list(HealthCheck), database=None)
    @given(messages(), st.integers(0, 3), st.integers(0, 60) | st.none())
    def body(message: protocol.Message, count: int, cut: int | None) -> None:
        nonlocal sent
        data = json.dumps(message).encode()[:cut]
        with instance.channel() as channel:
            channel.peer()
            socket.send_fds(channel.sock, [data or b" "], [null] * count)
            try:
                _, fds = protocol.receive(channel.sock)
            except (EOFError, ConnectionError):
                return
            for fd in fds:
                os.close(fd)
        sent += 1

    body()
    os.close(null)
    assert sent
    assert instance.alive()
    # One of them may have stopped another's program.
    instance.call("signal", signal=9, all=True)
    until(lambda: instance.call("status")["state"] == "idle", "what was started has ended")
    until(lambda: instance.descriptors() <= before, "descriptors are back")
    assert instance.run_to_end(shell("exit 6"), 2)["exit_code"] == 6
