"""One init for real: its verbs, what it bears, and what is left of a run."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import DEADLINE_S, MAX_IDLE, Instance, program, real_launcher, shell, until

from nativert.isolation import process
from nativert.launcher import protocol
from nativert.launcher.client import ReportedError
from nativert.store.boot import ExitFacts, boot_id

pytestmark = pytest.mark.root

PROTO1 = Path(__file__).parents[1] / "data/proto1"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with real_launcher(tmp_path) as launcher:
        yield launcher.create()


def log(instance: Instance) -> list[str]:
    """Return "stream tag text" of each record."""
    path = instance.log / protocol.LOG_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split(" ", 1)[1] for line in lines]


# -- runs ------------------------------------------------------------------------------


def test_the_end_is_told_and_written_with_what_happened(instance: Instance) -> None:
    told = instance.run_to_end(shell("echo out; echo err >&2; exit 3"), number=5)
    written = instance.exit_facts()
    assert told == written
    assert (written["run"], written["exit_code"], written["signal"]) == (5, 3, None)
    assert (written["cause"], written["error"]) == ("exited", None)
    assert written["boot_id"] == boot_id()
    assert written["started_at"] <= written["ended_at"]
    # The store reads it strictly.
    import msgspec

    facts = msgspec.json.decode((instance.directory / "exit.json").read_bytes(), type=ExitFacts)
    assert facts.exit_code == 3
    assert sorted(log(instance)) == ["stderr F err", "stdout F out"]
    assert instance.call("status")["state"] == "idle"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN])
def test_a_signal_is_told_as_one(instance: Instance, number: int) -> None:
    told = instance.run_to_end(shell(f"kill -{int(number)} $$"))
    assert (told["signal"], told["exit_code"], told["cause"]) == (number, None, "signal")


def test_a_second_run_waits_for_nothing_and_the_old_end_is_gone(instance: Instance) -> None:
    instance.run_to_end(shell("exit 1"), 1)
    instance.run(shell("sleep 60"), 2)
    assert not (instance.directory / "exit.json").exists()
    with pytest.raises(ReportedError) as refused:
        instance.run(shell("true"), 3)
    assert refused.value.errno == errno.EBUSY
    assert instance.call("status")["run"] == 2


def test_two_starters_at_once_start_one(instance: Instance) -> None:
    first, second = instance.channel(), instance.channel()
    for number, channel in enumerate((first, second)):
        message = {"verb": "run", "run": number, "program": shell("sleep 60")}
        protocol.send(channel.sock, message)
    answers = []
    for channel in (first, second):
        channel.peer()
        message, fds = protocol.receive(channel.sock)
        for fd in fds:
            os.close(fd)
        answers.append("error" in message)
        channel.close()
    assert sorted(answers) == [False, True]


@pytest.mark.parametrize("size", [1, 4 << 20])
def test_a_report_needs_no_memory(instance: Instance, size: int) -> None:
    """Without one a failed start would pass for an application that ended at once."""
    plan = program("x" * 500_000, rlimits={"as": [size, size]})
    for start in (lambda: instance.run(plan, 1), lambda: instance.exec(plan)):
        with pytest.raises(ReportedError) as failed:
            start()
        assert (failed.value.step, failed.value.errno) == ("exec", errno.ENAMETOOLONG)
    assert instance.run_to_end(shell("exit 0"), 9)["exit_code"] == 0


@pytest.mark.parametrize(
    ("plan", "step", "number"),
    [
        (program("/no/such/program"), "exec", errno.ENOENT),
        (program("not-in-path"), "exec", errno.ENOENT),
        (program("/etc/passwd"), "exec", errno.EACCES),
        (program("/bin/true", cwd="/no/such/directory"), "working directory", errno.ENOENT),
        (program("/bin/true", uid=70000), "user", errno.EINVAL),
        (program("/bin/true", rlimits={"nofile": [9, 1]}), "limits", errno.EPERM),
        (program("/bin/true", oom_score_adj=5000), "limits", errno.EINVAL),
        (program("x" * 200_000), "exec", errno.ENAMETOOLONG),
        (program("/" + "x/" * 200_000), "exec", errno.ENAMETOOLONG),
    ],
)
def test_what_cannot_start_is_told_with_step_and_errno(
    instance: Instance, plan: protocol.Message, step: str, number: int
) -> None:
    before = instance.descriptors()
    with instance.channel() as follower:
        for run in range(3):
            with pytest.raises(ReportedError) as failed:
                instance.run(plan, run)
            assert (failed.value.step, failed.value.errno) == (step, number)
            with pytest.raises(ReportedError) as failed:
                instance.exec(plan)
            assert (failed.value.step, failed.value.errno) == (step, number)
        assert follower.call({"verb": "status"})[0]["state"] == "idle"
    # It never ran: there is no end of it.
    assert not (instance.directory / "exit.json").exists()
    until(lambda: instance.descriptors() <= before)
    assert instance.run_to_end(shell("exit 0"), 9)["exit_code"] == 0


def test_everything_dies_with_the_application(instance: Instance) -> None:
    text = """
    trap '' TERM HUP INT
    for i in 1 2 3 4 5; do (trap '' TERM HUP; setsid sleep 600 & ) ; done
    sh -c 'while :; do sleep 0.01 & done' &
    sleep 0.1; exit 0
    """
    told = instance.run_to_end(shell(text))
    assert told["exit_code"] == 0
    assert instance.processes() <= MAX_IDLE


def test_a_storm_of_orphans_is_reaped(instance: Instance) -> None:
    text = f"""
    for i in $(seq 300); do (sleep 0 & ); done
    for i in $(seq 600); do
        left=$(ls /proc | grep -c '^[0-9]'); [ $left -le {MAX_IDLE} ] && break; sleep 0.1
    done
    echo $left
    """
    told = instance.run_to_end(shell(text))
    assert told["exit_code"] == 0
    assert int(log(instance)[-1].split()[-1]) <= MAX_IDLE
    assert not [n for n in instance.output("ps -eo stat=").split() if n.startswith("Z")]


def test_a_writer_in_another_place_does_not_hold_the_end(instance: Instance) -> None:
    """The application may pass its stdout to a process that init cannot kill."""
    with instance.channel() as channel:
        plan = shell("echo first; sleep 60")
        _, (pidfd,) = channel.call({"verb": "run", "run": 1, "program": plan, "follow": True})
        pid = process.host_pid(pidfd)
        os.close(pidfd)
        elsewhere = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY)
        os.kill(pid, signal.SIGKILL)
        event, _ = channel.receive(DEADLINE_S)
        assert event["event"] == "end"
    os.close(elsewhere)
    assert instance.call("status")["state"] == "idle"


def test_standard_streams_can_be_opened_by_name(instance: Instance) -> None:
    instance.run_to_end(shell("echo a >/dev/stdout; echo b >/dev/stderr; echo c >/proc/self/fd/1"))
    assert sorted(log(instance)) == ["stderr F b", "stdout F a", "stdout F c"]


# -- signals ---------------------------------------------------------------------------


def test_a_signal_reaches_the_first_process_only(instance: Instance) -> None:
    text = "trap 'echo got; exit 4' TERM; sleep 600 & echo ready; wait"
    instance.run(shell(text))
    until(lambda: log(instance) == ["stdout F ready"])
    with instance.channel() as channel:
        channel.call({"verb": "status", "follow": True})
        protocol.send(channel.sock, {"verb": "signal", "signal": signal.SIGTERM})
        assert channel.receive(DEADLINE_S)[0] == {"ok": True}
        assert channel.receive(DEADLINE_S)[0]["end"]["exit_code"] == 4


def test_a_signal_to_nobody_is_told(instance: Instance) -> None:
    with pytest.raises(ReportedError) as refused:
        instance.call("signal", signal=15)
    assert refused.value.errno == errno.ESRCH
    assert instance.call("signal", signal=9, all=True) == {"ok": True}


@pytest.mark.parametrize("number", [-1, 65, 1000, 1 << 70, "x", None, []])
def test_a_signal_that_is_none_is_refused(instance: Instance, number: object) -> None:
    instance.run(shell("sleep 60"))
    for everybody in (False, True):
        with pytest.raises(ReportedError):
            instance.call("signal", signal=number, all=everybody)
    assert instance.call("status")["state"] == "running"


def test_init_cannot_be_signalled_or_seen_into_from_inside(instance: Instance) -> None:
    out = instance.output(
        "exec 2>/dev/null; kill -9 1; kill -INT 1; ls /proc/1/fd; readlink /proc/1/root;"
        " cat /proc/1/environ; echo end"
    )
    assert out == "end\n"
    assert instance.alive()


# -- connections -----------------------------------------------------------------------


def test_garbage_and_unknown_verbs_end_nothing_else(instance: Instance) -> None:
    instance.run(shell("sleep 600"))
    before = instance.descriptors()
    null = os.open("/dev/null", os.O_RDONLY)
    for data in (b"\x00", b"[]", b'{"large":true}', b"[" * 50000, b"\xff" * 60000):
        channel = instance.channel()
        channel.peer()
        socket.send_fds(channel.sock, [data], [null, null])
        with pytest.raises((EOFError, ConnectionError)):
            channel.receive(DEADLINE_S)
        channel.close()
    for verb in ("create", "", None, 5, ["run"], {"verb": "run"}):
        with pytest.raises(ReportedError, match="unknown verb"):
            instance.call(verb)  # type: ignore[arg-type]
    for plan in (None, [], {}, {"argv": []}, {"argv": ["/bin/true"], "env": {}, "more": 1}):
        for verb in ("run", "exec"):
            with instance.channel() as channel, pytest.raises(ReportedError):
                channel.call({"verb": verb, "run": 1, "program": plan}, (null, null, null))
    os.close(null)
    until(lambda: instance.descriptors() <= before)
    assert instance.call("status")["state"] == "running"


def test_bad_programs_fail_in_the_child_and_not_in_init(instance: Instance) -> None:
    for change in (
        {"argv": []},
        {"argv": [1]},
        {"argv": "text"},
        {"env": {"A": 1}},
        {"env": []},
        {"cwd": None},
        {"umask": "x"},
        {"groups": None},
        {"rlimits": []},
        {"rlimits": {"nope": [1, 1]}},
        {"uid": "root"},
        {"argv": ["/bin/true", "nul\0"]},
    ):
        with pytest.raises(ReportedError):
            instance.run(program("/bin/true", **change))
        with pytest.raises(ReportedError):
            instance.exec(program("/bin/true", **change))
    assert instance.run_to_end(shell("exit 6"))["exit_code"] == 6


def test_more_than_a_hundred_connections_are_served(instance: Instance) -> None:
    channels = [instance.channel() for _ in range(150)]
    for channel in channels:
        assert channel.call({"verb": "status"})[0]["state"] == "idle"
    for channel in channels:
        channel.close()
    until(lambda: instance.descriptors() < 20)


def test_a_follower_that_does_not_read_holds_nobody(instance: Instance) -> None:
    instance.run(shell("sleep 600"))
    deaf = instance.channel()
    deaf.sock.setblocking(False)
    try:
        for _ in range(20000):
            protocol.send(deaf.sock, {"verb": "status", "follow": True})
    except OSError:
        pass  # Its own buffer is full, or it was dropped.
    with instance.channel() as channel:
        channel.call({"verb": "status", "follow": True})
        protocol.send(channel.sock, {"verb": "signal", "signal": 9})
        assert channel.receive(DEADLINE_S)[0] == {"ok": True}
        assert channel.receive(DEADLINE_S)[0]["event"] == "end"
    deaf.close()


def test_another_users_connection_is_refused(instance: Instance) -> None:
    from forked import run_forked

    fd = os.open(instance.directory, os.O_PATH)

    def body() -> None:
        os.setresuid(1000, 1000, 1000)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(DEADLINE_S)
            try:
                sock.connect(f"/proc/self/fd/{fd}/init.sock")
            except PermissionError:
                return
            protocol.send(sock, {"verb": "release"})
            try:
                answer, _ = protocol.receive(sock)
            except (EOFError, ConnectionError):
                return
            assert "error" in answer

    run_forked(body)
    os.close(fd)
    assert instance.alive()


def test_release_kills_everything_and_ends_init(instance: Instance) -> None:
    instance.run(shell("trap '' TERM HUP; setsid sleep 600 & wait"))
    with instance.channel() as channel:
        answer, (pidfd,) = channel.call({"verb": "status", "pidfd": True})
        assert answer["state"] == "running"
        assert channel.call({"verb": "release"})[0] == {"ok": True}
    assert process.wait_end(instance.created.pidfd, DEADLINE_S)
    assert process.wait_end(pidfd, DEADLINE_S)
    os.close(pidfd)


def test_hundreds_of_runs_and_sessions_cost_init_nothing(instance: Instance) -> None:
    # The first line opens the log.
    instance.run_to_end(shell("echo line"))
    instance.exec(shell("exit 0"))

    def resident_kib() -> int:
        lines = Path(f"/proc/{instance.created.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    before = instance.descriptors(), resident_kib()
    for number in range(150):
        instance.run_to_end(shell("echo line"), number)
        instance.exec(shell("exit 0"))
    until(lambda: instance.descriptors() <= before[0])
    assert resident_kib() - before[1] < 512


# -- proto 1 ---------------------------------------------------------------------------


VOLATILE = {"boot_id", "pid", "start", "started_at", "ended_at"}


def alike(recorded: object, answer: object, key: str = "") -> bool:
    """Whether an answer says at least what the recorded one said."""
    if isinstance(recorded, dict):
        return isinstance(answer, dict) and all(
            key in answer and alike(value, answer[key], key) for key, value in recorded.items()
        )
    if key == "state" and recorded == "running":
        # Its application may have ended before the answer was sent.
        return answer in ("running", "ending")
    return type(recorded) is type(answer) and (key in VOLATILE or recorded == answer)


@pytest.mark.parametrize("path", sorted(PROTO1.glob("*.json")), ids=lambda path: path.stem)
def test_a_recorded_conversation_of_proto_1_still_holds(instance: Instance, path: Path) -> None:
    recorded = json.loads(path.read_bytes())
    assert recorded["proto"] == protocol.PROTO
    if path.stem in ("status", "signal"):
        instance.run(shell("sleep 60"), 3)
    elif path.stem == "status-idle":
        instance.run(shell("sleep 60"), 3)
        instance.call("signal", signal=15)
        until(lambda: instance.call("status")["state"] == "idle")
    null = os.open("/dev/null", os.O_RDWR)
    held = [null]
    with instance.channel() as channel:
        channel.peer()
        for part in recorded["talk"]:
            if "send" in part:
                protocol.send(channel.sock, part["send"], [null] * part["descriptors"])
                continue
            answer, fds = protocol.receive(channel.sock)
            held += fds
            assert len(fds) == part["descriptors"]
            assert alike(part["receive"], answer), (part["receive"], answer)
    for fd in held:
        os.close(fd)
