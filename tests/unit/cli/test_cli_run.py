"""`run` in the foreground: the log, the end, signals, and what is left afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cli_fake_node import UUIDS

from nativert.errors import Code, NativertError
from nativert.runtime.views import End, LogLine

DESCRIPTOR = """{"id": "app", "name": "app", "hypervisor": "BARE",
 "command": {"binary": "/bin/true", "args": []}}"""


@pytest.fixture
def app(tmp_path) -> str:
    path = tmp_path / "app.json"
    path.write_text(DESCRIPTOR)
    return str(path)


def _verbs(node) -> list[str]:
    return [str(call[0]) for call in node.calls if call[0] not in ("env", "logs")]


def _send(*signals: int):
    """Return a hook that sends this process the next of *signals* each time it is called."""
    left = list(signals)

    def hook() -> None:
        if left:
            os.kill(os.getpid(), left.pop(0))

    return hook


def test_the_log_is_streamed_and_nothing_is_left(node, nativert, app):
    node.lines = [
        LogLine(time="t", stream="stdout", text=b"out"),
        LogLine(time="t", stream="stderr", text=b"err"),
        LogLine(time="t", stream="stdout", text=b"no newline", partial=True),
    ]
    node.finish(End(reason="exited", message="exited with 3", exit_code=3))
    result = nativert("run", app, "--env", "A=1", "--name", "mine")
    assert result == (3, "out\nno newline", "err\n")
    assert node.calls[0] == ("define", "mine")
    assert ("env", {"A": "1"}) in node.calls
    assert _verbs(node) == ["define", "configure", "run", "remove"]
    assert node.rows == {}


def test_keep_leaves_the_instance(node, nativert, app):
    node.finish(node.end)
    assert nativert("run", "--keep", app).code == 0
    assert len(node.rows) == 1
    assert "remove" not in _verbs(node)


def test_detached_prints_the_uuid_and_leaves(node, nativert, app):
    assert nativert("run", "-d", app) == (0, UUIDS[0] + "\n", "")
    row = json.loads(nativert("run", "-d", app, "-o", "json").out)
    assert (row["instance"], row["state"]) == (UUIDS[1], "RUNNING")
    assert len(node.rows) == 2


@pytest.mark.parametrize(
    ("end", "code", "err"),
    [
        (
            End(reason="oom", message="killed: out of memory", signal="SIGKILL", oom=True),
            137,
            "nativert: app: killed: out of memory\n",
        ),
        (
            End(reason="signal", message="killed by SIGSEGV", signal="SIGSEGV"),
            139,
            "nativert: app: killed by SIGSEGV\n",
        ),
        (End(reason="init-lost", message="init lost"), 125, "nativert: app: init lost\n"),
        (End(reason="stopped", message="stopped", exit_code=0), 0, ""),
    ],
)
def test_an_end_that_the_application_did_not_choose_is_told(node, nativert, app, end, code, err):
    node.finish(end)
    assert nativert("run", app) == (code, "", err)
    assert node.rows == {}


def test_the_reason_is_json_where_json_was_asked_for(node, nativert, app):
    node.finish(End(reason="oom", message="killed", signal="SIGKILL", oom=True))
    result = nativert("-o", "json", "run", app)
    assert json.loads(result.err)["error"]["code"] == "oom"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_application_and_cleans_up(node, nativert, app, number):
    node.on_wait = _send(number)
    before = signal.getsignal(number)
    assert nativert("run", app) == (143, "", "")
    assert _verbs(node) == ["define", "configure", "run", "stop", "remove"]
    assert node.rows == {}
    assert signal.getsignal(number) is before


def test_a_second_interrupt_kills(node, nativert, app):
    node.on_wait = _send(signal.SIGINT)

    def grace() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert node.ended.wait(30)

    node.on_stop = grace
    assert nativert("run", app) == (137, "", "")
    assert _verbs(node) == ["define", "configure", "run", "stop", "kill", "remove"]


def test_a_second_term_waits_for_the_grace_period(node, nativert, app):
    node.on_wait = _send(signal.SIGTERM)
    node.on_stop = _send(signal.SIGTERM)
    assert nativert("run", app).code == 143
    assert "kill" not in _verbs(node)


def test_a_paused_application_is_killed(node, nativert, app):
    def pause_and_interrupt() -> None:
        node.pause("app")
        os.kill(os.getpid(), signal.SIGTERM)

    node.on_wait = pause_and_interrupt
    assert nativert("run", app).code == 137
    assert ("kill", "app", 9) in node.calls
    assert node.rows == {}


def test_a_signal_ends_the_wait_for_a_reader_that_does_not_read(node, nativert, app):
    """A terminal stopped by Ctrl-S: the application has ended, its log cannot be shown."""
    done = threading.Event()

    def blocked(_ref: str, *, follow: bool):
        done.wait(30)
        yield from ()

    def press_keys() -> None:
        # One key may come before the end is known, and only asks for the stop then.
        while not done.wait(0.02):
            os.kill(os.getpid(), signal.SIGTERM)

    node.logs = blocked
    node.finish(node.end)
    keys = threading.Thread(target=press_keys)
    node.on_wait = keys.start
    remove = node.remove
    node.remove = lambda *args, **options: (done.set(), keys.join(), remove(*args, **options))
    assert nativert("run", app).code == 0
    assert node.rows == {}


@pytest.mark.parametrize("step", ["configure", "run"])
def test_a_start_that_fails_leaves_nothing(node, nativert, app, step):
    node.fail[step] = NativertError("app: no such program", code=Code.COMMAND_NOT_FOUND)
    result = nativert("run", "--keep", app)
    assert (result.code, result.err) == (127, "nativert: app: no such program\n")
    assert node.calls[-1] == ("remove", "app", True)
    assert node.rows == {}


def test_a_signal_during_configure_interrupts_it(node, nativert, app):
    def configure(_ref: str, *, progress: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)
        pytest.fail("the signal came through too late")

    node.configure = configure
    result = nativert("run", app)
    assert (result.code, result.err) == (143, "nativert: interrupted by SIGTERM\n")
    assert node.rows == {}


def test_a_signal_during_define_is_kept_until_the_instance_is_known(node, nativert, app):
    define = node.define

    def slow(descriptor, *, name):
        os.kill(os.getpid(), signal.SIGINT)
        return define(descriptor, name=name)

    node.define = slow
    assert nativert("run", app).code == 130
    assert _verbs(node) == ["define", "remove"]


def _hear_in_the_start(node, *signals: int) -> None:
    run = node.run

    def slow(ref: str, *, env: dict[str, str]):
        for number in signals:
            os.kill(os.getpid(), number)
        return run(ref, env=env)

    node.run = slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_start_stops_what_has_started(node, nativert, app, number):
    """It may have written something before the answer is here."""
    node.lines = [LogLine(time="t", stream="stdout", text=b"up")]
    _hear_in_the_start(node, number)
    assert nativert("run", app) == (143, "up\n", "")
    assert _verbs(node) == ["define", "configure", "run", "stop", "remove"]
    assert node.calls[-1] == ("remove", "app", False)
    assert node.rows == {}


def test_a_second_signal_during_the_start_interrupts_it(node, nativert, app):
    _hear_in_the_start(node, signal.SIGTERM, signal.SIGINT)
    result = nativert("run", app)
    assert (result.code, result.err) == (130, "nativert: interrupted by SIGINT\n")
    assert _verbs(node) == ["define", "configure", "remove"]
    assert node.rows == {}


def test_a_signal_during_the_start_of_a_detached_one_interrupts_it(node, nativert, app):
    _hear_in_the_start(node, signal.SIGTERM)
    result = nativert("run", "-d", app)
    assert (result.code, result.out) == (143, "")
    assert node.rows == {}


def test_a_start_that_fails_after_a_signal_is_told(node, nativert, app):
    node.fail["run"] = NativertError("app: no such program", code=Code.COMMAND_NOT_FOUND)
    _hear_in_the_start(node, signal.SIGTERM)
    assert nativert("run", app).code == 127
    assert node.rows == {}


def test_a_removal_that_fails_is_told_beside_the_first_error(node, nativert, app):
    node.fail["configure"] = NativertError("first")
    node.fail["remove"] = NativertError("second", code=Code.CLEAN)
    assert nativert("run", app).err == "nativert: first\nnativert: second\n"


def test_nativert_failing_after_the_start_is_125(node, nativert, app):
    node.ended.set()
    node.fail["wait"] = NativertError("the node went away", code=Code.STORE)
    result = nativert("run", app)
    assert (result.code, result.err) == (125, "nativert: the node went away\n")
    assert node.calls[-1] == ("remove", "app", True)


def test_a_fault_of_nativert_after_the_start_leaves_no_application(node, nativert, app):
    node.ended.set()
    node.fail["wait"] = ZeroDivisionError("fault")
    with pytest.raises(ZeroDivisionError):
        nativert("run", app)
    assert node.rows == {}


def test_a_clean_up_that_fails_after_the_end_is_125(node, nativert, app):
    node.finish(node.end)
    node.fail["remove"] = NativertError("busy", code=Code.CLEAN)
    assert nativert("run", app) == (125, "", "nativert: busy\n")


def test_bind_here_adds_the_directory_read_only(node, nativert, app, tmp_path, monkeypatch):
    taken = []
    monkeypatch.chdir(tmp_path)
    define = node.define
    node.define = lambda descriptor, *, name: (taken.append(descriptor), define(descriptor))[1]
    assert nativert("run", "-d", "--bind-here", app).code == 0
    [mount] = taken[0].native.mounts
    assert (mount.source, mount.target, mount.read_only) == (str(tmp_path), str(tmp_path), True)


def test_bind_here_of_the_root_directory_is_refused(node, nativert, app, monkeypatch):
    monkeypatch.chdir("/")
    result = nativert("run", "--bind-here", app)
    assert result.code == 2
    assert result.err.startswith("nativert: --bind-here: ")


@pytest.mark.parametrize("close", ["reader gone", "closed at once"])
def test_a_closed_stdout_stops_and_cleans_up(app, close):
    """The application of `nativert run app | head -1` must not be left behind."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from cli_fake_node import FakeNode
from nativert.cli import context, main
from nativert.runtime.views import LogLine
fake = FakeNode()
context.open_node = fake.open
def logs(ref, *, follow):
    while not fake.ended.is_set():
        yield LogLine(time="t", stream="stdout", text=b"x" * 1000)
fake.logs = logs
try:
    main.main(["run", {app!r}])
finally:
    print(*[call[0] for call in fake.calls], len(fake.rows), file=sys.stderr)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if close == "reader gone":
            assert process.stdout.read(100) == "x" * 100
        process.stdout.close()
        err = process.stderr.read()
    assert err == "define configure env run stop remove 0\n"
    assert process.returncode == 143
