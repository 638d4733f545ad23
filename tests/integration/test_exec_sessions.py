"""Programs that exec starts beside the application: codes, cgroup, refusals, a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from nodes import CLI, make_descriptor, run_inside, start

from nativert.errors import Code, NativertError, TransitionError
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_exec_codes(node: Node, cli: Cli) -> None:
    app = start(node, shell=SLEEP, native={"env": {"WHO": "app"}, "user": "nobody"})
    assert run_inside(node, app, "sh", "-c", "exit 7") == (7, "")
    assert run_inside(node, app, "sh", "-c", "kill -TERM $$") == (143, "")
    code, text = run_inside(node, app, "sh", "-c", "id -u; pwd; echo $WHO $NEW", env={"NEW": "x"})
    assert (code, text) == (0, "65534\n/data\napp x\n")
    for argv, word in (
        (["no-such-program"], Code.COMMAND_NOT_FOUND),
        (["/etc/passwd"], Code.NOT_EXECUTABLE),
    ):
        with pytest.raises(NativertError) as refused:
            run_inside(node, app, *argv)
        assert refused.value.code is word
    assert node.get(app).state == "RUNNING"

    done = cli("exec", "app", "--", "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")
    assert cli("exec", "app", "no-such-program").returncode == 127
    assert cli("exec", "app", "/etc/passwd").returncode == 126
    done = cli("exec", "-i", "app", "--", "cat", input="through stdin\n")
    assert (done.returncode, done.stdout) == (0, "through stdin\n")


def test_exec_is_in_the_cgroup_and_dies_with_the_application(node: Node) -> None:
    app = start(node, shell=SLEEP)
    null = os.open("/dev/null", os.O_RDWR)
    session = node.exec(app, ["sleep", "1000"], stdio=(null, null, null))
    os.close(null)
    assert node.get(app).pids == 2
    node.stop(app)
    assert session.wait() == 137
    session.close()


def test_exec_is_refused_where_nothing_runs_or_all_is_frozen(node: Node) -> None:
    app = node.define(make_descriptor(shell=SLEEP)).instance
    with pytest.raises(TransitionError):
        run_inside(node, app, "true")
    node.configure(app)
    assert run_inside(node, app, "cat", "/proc/1/comm")[0] == 0
    node.run(app)
    node.pause(app)
    with pytest.raises(TransitionError):
        run_inside(node, app, "true")


def test_exec_on_a_terminal_through_the_cli(node: Node, root: Path) -> None:
    start(node, shell=SLEEP)
    pid, master = pty.fork()
    if pid == 0:
        os.environ["NATIVERT_ROOT"] = str(root)
        os.execv(
            CLI[0],
            [*CLI, "exec", "-it", "app", "--", "sh", "-c", "tty; read x; echo got $x; exit 5"],
        )
    seen = b""

    def see(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([master], [], [], 10)[0], seen
            try:
                seen += os.read(master, 4096)
            except OSError as e:
                raise AssertionError(seen) from e

    try:
        see(b"/dev/pts/")
        os.write(master, b"typed\r")
        see(b"got typed")
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(master)
    assert os.waitstatus_to_exitcode(status) == 5
