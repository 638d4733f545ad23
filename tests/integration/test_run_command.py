"""`nativert run` in the foreground, as a shell starts it: a process of its own, real signals."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import scale
from nodes import CLI, make_document, until

from nativert.runtime.node import Node
from nativert.store import boot

pytestmark = [pytest.mark.root, pytest.mark.netns]

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
# Says when it is up, ends by itself on nothing, and tells which signal it got.
POLITE = "trap 'echo got TERM; exit 0' TERM; echo up; while :; do sleep 0.05; done"
STILL = "run.started=stop"
DEAF = "trap '' TERM INT HUP; echo up; while :; do sleep 0.05; done"


class Foreground:
    """A running `nativert run`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stdout is not None
        self._out = process.stdout.fileno()
        self.seen = b""

    def until_seen(self, text: bytes, *, deadline_s: float = scale.LONG_S) -> None:
        end = time.monotonic() + deadline_s
        while text not in self.seen:
            ready = select.select([self._out], [], [], max(0.0, end - time.monotonic()))[0]
            data = os.read(self._out, 65536) if ready else b""
            assert data, f"{text!r} is not in {self.seen!r}"
            self.seen += data

    def ended(self, *, deadline_s: float = scale.LONG_S) -> tuple[int, bytes, bytes]:
        """Return (exit code, stdout, stderr) once it has ended."""
        out, err = self.process.communicate(timeout=deadline_s)
        return self.process.returncode, self.seen + out, err


@pytest.fixture
def document(tmp_path: Path) -> Callable[..., str]:
    def write(**fields: Any) -> str:
        path = tmp_path / f"{fields.get('name', 'app')}.json"
        path.write_text(json.dumps(make_document(**fields)))
        return str(path)

    return write


@pytest.fixture
def foreground(
    root: Path, node: Node, document: Callable[..., str]
) -> Iterator[Callable[..., Foreground]]:
    with ExitStack() as processes:

        def run(*options: str, stdout: int = subprocess.PIPE, **fields: Any) -> Foreground:
            process = processes.enter_context(
                subprocess.Popen(
                    [*CLI, "run", *options, document(**fields)],
                    env=os.environ | {"NATIVERT_ROOT": str(root)},
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            )
            processes.callback(process.kill)
            return Foreground(process)

        yield run


@pytest.fixture
def starter(monkeypatch: pytest.MonkeyPatch) -> Callable[[Foreground], int]:
    """Has who starts the application stand still before it says so; returns whose pid that is."""
    monkeypatch.setenv("NATIVERT_FAILPOINTS", STILL)
    return lambda run: run.process.pid


def stands_still(pid: int) -> bool:
    """Tell whether a process is stopped; see proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# -- to the end ------------------------------------------------------------------------------


def test_log_and_exit_code_and_nothing_left(
    node: Node, foreground: Callable[..., Foreground]
) -> None:
    run = foreground(shell="echo to stdout; echo to stderr >&2; printf 'no newline'; exit 42")
    assert run.ended() == (42, b"to stdout\nno newline", b"to stderr\n")
    assert node.list() == []


def test_the_log_is_streamed_while_it_runs(
    node: Node, foreground: Callable[..., Foreground]
) -> None:
    run = foreground(shell="echo first; until [ -e go ]; do sleep 0.02; done; echo second")
    run.until_seen(b"first\n")
    row = node.get("app")
    assert row.state == "RUNNING"
    (node._context.paths.instance_lib(row.instance) / "data/go").touch()
    assert run.ended() == (0, b"first\nsecond\n", b"")


def test_bytes_are_relayed_as_they_are(foreground: Callable[..., Foreground]) -> None:
    run = foreground(shell=r"printf 'a\000b\377\033[1m\n\nend'")
    assert run.ended()[:2] == (0, b"a\0b\xff\x1b[1m\n\nend")


def test_all_of_a_long_log_comes(foreground: Callable[..., Foreground]) -> None:
    run = foreground(shell="seq 1 20000")
    code, out, _ = run.ended()
    assert code == 0
    assert out == b"".join(b"%d\n" % i for i in range(1, 20001))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_128_and_the_signal_that_ended_it(
    node: Node, foreground: Callable[..., Foreground], number: signal.Signals
) -> None:
    code, _, err = foreground(shell=f"kill -{number} $$").ended()
    assert code == 128 + number
    assert err == f"nativert: app: ended by {number.name}\n".encode()
    assert node.list() == []


def test_an_oom_is_said(node: Node, foreground: Callable[..., Foreground]) -> None:
    run = foreground(python="bytearray(200 << 20)", native={"memory": {"max": "32M", "swap": 0}})
    code, _, err = run.ended()
    assert code == 137
    assert b"OOM killer" in err
    assert b"32.0 MiB" in err


def test_environment_and_name(node: Node, foreground: Callable[..., Foreground]) -> None:
    run = foreground(
        "--env", "WHO=me", "--env=EMPTY=", "--name", "other", shell="echo $WHO-$EMPTY-; hostname"
    )
    assert run.ended() == (0, b"me--\nother\n", b"")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"binary": "/usr/bin/nonesuch"}, 127),
        ({"binary": "nonesuch"}, 127),
        ({"binary": "/etc/passwd"}, 126),
        ({"shell": "exit", "native": {"user": "nosuchuser"}}, 1),
        ({"shell": "exit", "native": {"cpu": {"cpuset": "4000"}}}, 1),
    ],
)
def test_a_start_that_fails_leaves_nothing(
    node: Node, foreground: Callable[..., Foreground], fields: dict[str, Any], code: int
) -> None:
    got, out, err = foreground(**fields).ended()
    assert (got, out) == (code, b"")
    assert err.startswith(b"nativert: ")
    assert err.count(b"\n") == 1
    assert node.list() == []


def test_keep(node: Node, foreground: Callable[..., Foreground]) -> None:
    assert foreground("--keep", shell="exit 4").ended()[0] == 4
    row = node.get("app")
    assert row.state == "CONFIGURED"
    assert row.end is not None
    assert row.end.exit_code == 4


def test_detached(node: Node, foreground: Callable[..., Foreground]) -> None:
    code, out, err = foreground("-d", shell=POLITE).ended()
    assert (code, err) == (0, b"")
    row = node.get(out.decode().strip())
    assert (row.name, row.state) == ("app", "RUNNING")


# -- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_cleans_and_undefines(
    node: Node, foreground: Callable[..., Foreground], number: signal.Signals
) -> None:
    run = foreground(shell=POLITE, veth=True)
    run.until_seen(b"up\n")
    run.process.send_signal(number)
    assert run.ended() == (0, b"up\ngot TERM\n", b"")
    assert node.list() == []


def test_the_code_of_an_application_that_its_stop_signal_ends(
    node: Node, foreground: Callable[..., Foreground]
) -> None:
    run = foreground(shell="echo up; exec sleep 1000")
    run.until_seen(b"up\n")
    run.process.send_signal(signal.SIGTERM)
    assert run.ended() == (128 + signal.SIGTERM, b"up\n", b"")


def test_a_second_interrupt_kills(node: Node, foreground: Callable[..., Foreground]) -> None:
    run = foreground(shell=DEAF, native={"stop": {"grace": "1h"}})
    run.until_seen(b"up\n")
    run.process.send_signal(signal.SIGINT)
    # The stop is under way once its intent is noted.
    app = node.get("app").instance

    def begun() -> bool:
        facts = boot.read_facts(node._context.paths, app)
        return facts is not None and facts.intent == "stop"

    until(begun, what="the intent to stop is noted")
    run.process.send_signal(signal.SIGINT)
    # Long before the grace is over.
    code, _, _ = run.ended()
    assert code == 128 + signal.SIGKILL
    assert node.list() == []


def test_grace_then_kill(node: Node, foreground: Callable[..., Foreground]) -> None:
    run = foreground(shell=DEAF, native={"stop": {"grace": "300ms"}})
    run.until_seen(b"up\n")
    begun = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.ended()[0] == 128 + signal.SIGKILL
    # What nobody has set is 10 s.
    assert 0.3 <= time.monotonic() - begun < scale.seconds(8)
    assert node.list() == []


def test_ctrl_c_on_a_terminal(node: Node, root: Path, document: Callable[..., str]) -> None:
    path = document(shell=POLITE)
    pid, master = pty.fork()
    if pid == 0:
        os.environ["NATIVERT_ROOT"] = str(root)
        os.execv(CLI[0], [*CLI, "run", path])
    seen = b""

    def see(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([master], [], [], scale.LONG_S)[0], seen
            seen += os.read(master, 4096)

    try:
        see(b"up\r\n")
        os.write(master, b"\x03")
        see(b"got TERM\r\n")
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0
    assert node.list() == []


def test_a_signal_during_configure_leaves_nothing(
    node: Node, foreground: Callable[..., Foreground]
) -> None:
    run = foreground(shell="exit", veth=True, configuration={"script": "sleep 1000"})
    until(
        lambda: any(
            p for row in node.list() for p in node._context.driver.open(f"i-{row.instance}").pids()
        )
    )
    run.process.send_signal(signal.SIGTERM)
    code, out, err = run.ended()
    assert (code, out) == (128 + signal.SIGTERM, b"")
    assert err == b"nativert: interrupted by SIGTERM\n"
    assert node.list() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_it_is_known_that_it_runs(
    node: Node,
    foreground: Callable[..., Foreground],
    starter: Callable[[Foreground], int],
    number: signal.Signals,
) -> None:
    """What it has written is shown, and it is stopped as any other that runs."""
    run = foreground(shell=POLITE.replace("echo up;", "echo up; touch /data/up;"))
    app = until(lambda: next(iter(node.list()), None))
    assert app is not None
    until((node._context.paths.instance_lib(app.instance) / "data/up").exists)
    pid = starter(run)
    until(lambda: stands_still(pid), what="who starts it stands still")
    run.process.send_signal(number)
    os.kill(pid, signal.SIGCONT)
    assert run.ended() == (0, b"up\ngot TERM\n", b"")
    assert node.list() == []


def test_paused_by_another_and_interrupted(
    node: Node, foreground: Callable[..., Foreground]
) -> None:
    run = foreground(shell=POLITE)
    run.until_seen(b"up\n")
    node.pause("app")
    run.process.send_signal(signal.SIGINT)
    assert run.ended()[0] == 128 + signal.SIGKILL
    assert node.list() == []


def test_stopped_by_another(node: Node, foreground: Callable[..., Foreground]) -> None:
    run = foreground(shell=POLITE)
    run.until_seen(b"up\n")
    node.stop("app")
    assert run.ended()[:2] == (0, b"up\ngot TERM\n")
    assert node.list() == []


# -- whoever started it goes -----------------------------------------------------------------


def test_killed_run_leaves_the_application_running(
    node: Node, foreground: Callable[..., Foreground], cli: Cli
) -> None:
    run = foreground(shell="echo up; sleep 0.3; echo later; exec sleep 1000")
    run.until_seen(b"up\n")
    pid = node.get("app").pid
    run.process.kill()
    run.process.wait(scale.LONG_S)
    rows = json.loads(cli("ps", "-o", "json").stdout)
    assert [(row["name"], row["state"], row["pid"]) for row in rows] == [("app", "RUNNING", pid)]
    # The log goes on without it.
    until(lambda: cli("logs", "app").stdout == "up\nlater\n")
    assert cli("exec", "app", "--", "echo", "alive").stdout == "alive\n"
    done = cli("rm", "app")
    assert done.returncode == 0, done.stderr
    assert json.loads(cli("ps", "-a", "-o", "json").stdout) == []


def test_killed_run_whose_application_ended_meanwhile(
    node: Node, foreground: Callable[..., Foreground], cli: Cli
) -> None:
    run = foreground(shell="echo up; until [ -e go ]; do sleep 0.02; done; exit 11")
    run.until_seen(b"up\n")
    row = node.get("app")
    run.process.kill()
    run.process.wait(scale.LONG_S)
    (node._context.paths.instance_lib(row.instance) / "data/go").touch()
    assert cli("wait", "app").returncode in (0, 11)
    told = json.loads(cli("inspect", "app", "-o", "json").stdout)
    assert told["status"] == "CONFIGURE"
    assert node.get("app").end is not None
    assert node.get("app").end.exit_code == 11  # type: ignore[union-attr]


def test_nobody_reads_any_more(node: Node, foreground: Callable[..., Foreground]) -> None:
    run = foreground(shell="trap 'exit 0' TERM; while :; do echo line; sleep 0.02; done")
    run.until_seen(b"line\n")
    assert run.process.stdout is not None
    run.process.stdout.close()
    assert run.process.wait(scale.LONG_S) in (0, 128 + signal.SIGPIPE)
    assert node.list() == []


def test_a_reader_that_stops_reading_does_not_stop_the_application(
    node: Node, foreground: Callable[..., Foreground]
) -> None:
    run = foreground("--keep", shell="seq 1 100000; echo done > /data/done; exec sleep 1000")
    app = until(lambda: next(iter(node.list()), None))
    assert app is not None
    done = node._context.paths.instance_lib(app.instance) / "data/done"
    # Nobody reads stdout: its pipe is full long before.
    until(done.exists)
    run.process.send_signal(signal.SIGTERM)
    code, out, _ = run.ended()
    assert code == 128 + signal.SIGTERM
    assert out.startswith(b"1\n2\n3\n")
