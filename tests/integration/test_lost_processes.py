"""Launcher, init or application killed, or all by a reboot: what is told and what goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import scale
from aftermath import (
    FOREVER,
    OPERATIONS,
    alter_facts,
    assert_nothing_left,
    driver,
    facts,
    kill,
    left_of,
    live_on,
    operate_in_a_child,
    prepare,
)
from nodes import (
    MakeNode,
    launcher_of,
    log_text,
    make_descriptor,
    run_inside,
    start,
    until,
    until_logged,
)

from nativert.errors import Code, NativertError, StepError
from nativert.isolation import process
from nativert.isolation.cgroups.driver import INIT
from nativert.runtime.node import Node
from nativert.store.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.netns]


# -- the launcher ------------------------------------------------------------------------------


def test_instances_outlive_the_launcher_and_a_new_one_serves_new_ones(
    node: Node, root: Path, make_node: MakeNode
) -> None:
    first = start(node, shell="n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done", veth=True)
    ends = node.define(make_descriptor(name="ends", shell="read x < /data/go; exit 7")).instance
    node.configure(ends)
    os.mkfifo(Paths(root).instance_lib(ends) / "data/go")
    os.chmod(Paths(root).instance_lib(ends) / "data/go", 0o666)
    node.run(ends)
    until_logged(node, first, "1\n")
    launcher = launcher_of(root)

    kill(launcher)

    seen = len(log_text(node, first))
    until(lambda: len(log_text(node, first)) > seen, what="the log goes on")
    assert run_inside(node, first, "echo", "here") == (0, "here\n")
    with open(Paths(root).instance_lib(ends) / "data/go", "w") as go:
        go.write("\n")
    ended = node.wait(ends, timeout_s=scale.LONG_S)
    assert ended.end is not None
    assert (ended.state, ended.end.code) == ("CONFIGURED", 7)

    second = start(node, name="second", shell=FOREVER, veth=True)
    with make_node() as other:  # and so does a command that comes later
        assert {i.name: i.state for i in other.list()} == {
            "app": "RUNNING",
            "ends": "CONFIGURED",
            "second": "RUNNING",
        }
    successor = launcher_of(root)
    assert successor != launcher
    for uuid in (first, second):
        assert node.stop(uuid).state == "CONFIGURED"
        assert node.clean(uuid).state == "DEFINED"
        assert_nothing_left_but(node, root, uuid, others=True)


def assert_nothing_left_but(node: Node, root: Path, uuid: str, *, others: bool) -> None:
    def mine() -> list[str]:
        return [w for w in left_of(node, root, uuid) if not (others and w.startswith("init"))]

    until(lambda: not mine(), what=f"nothing left of {uuid}")


def test_a_launcher_killed_while_it_creates_leaves_no_init(node: Node, root: Path) -> None:
    """The launcher dies between the fork of init and its answer: init goes with it."""
    for delay_s in (0.0, 0.002, 0.005, 0.01, 0.02, 0.04):
        uuid = node.define(make_descriptor(name=f"d{delay_s * 1000:.0f}", shell=FOREVER)).instance
        warm = start(node, name="warm", shell=FOREVER)
        launcher = launcher_of(root)
        pid = os.posix_spawn(
            sys.executable,
            [
                sys.executable,
                "-c",
                f"import os, time; time.sleep({delay_s} + 0.01); os.kill({launcher}, 9)",
            ],
            os.environ,
        )
        try:
            node.configure(uuid)
        except StepError:
            pass  # The launcher went twice; either way the state is a true one.
        os.waitpid(pid, 0)
        state = node.get(uuid).state
        assert state in ("DEFINED", "CONFIGURED")
        expected = 2 if state == "CONFIGURED" else 1
        until(lambda: len(driver(root).open(INIT).pids()) == expected, what="no init too many")  # noqa: B023
        node.remove(uuid)
        node.remove(warm, force=True)


# -- init --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["CONFIGURED", "RUNNING", "PAUSED"])
def test_an_init_that_is_killed_is_told_as_lost(node: Node, root: Path, state: str) -> None:
    uuid = prepare(node, state)
    kill(facts(root, uuid)["init_pid"], held=state == "PAUSED" and driver(root).mode == "v1")

    lost = node.get(uuid)

    assert lost.state == "DEFINED"
    assert lost.end is not None
    assert lost.end.reason == "init-lost"
    assert lost.end.exit_code is None
    assert_nothing_left(node, root, uuid)
    live_on(node, uuid)


def test_an_init_that_told_the_end_and_was_killed_is_lost_too(node: Node, root: Path) -> None:
    """As when systemd ends its scope: SIGKILL to all, and init has a moment more."""
    uuid = prepare(node, "RUNNING")
    noted = facts(root, uuid)
    kill(noted["details"]["pid"])
    until((Paths(root).instance_run(uuid) / "exit.json").exists)
    kill(noted["init_pid"])

    lost = node.get(uuid)

    assert lost.state == "DEFINED"
    assert lost.end is not None
    assert lost.end.reason == "init-lost"
    told = [event.kind for event in node.events() if event.instance == uuid]
    assert told[-2:] == ["ended", "lost"]
    assert_nothing_left(node, root, uuid)
    live_on(node, uuid)


@pytest.mark.parametrize("verb", ["stop", "pause", "scale"])
def test_an_operation_on_a_lost_init_is_refused_and_settles_it(
    node: Node, root: Path, verb: str
) -> None:
    uuid = prepare(node, "RUNNING")
    kill(facts(root, uuid)["init_pid"])
    with pytest.raises(NativertError) as refusal:
        getattr(node, verb)(uuid, **OPERATIONS[verb][1])
    assert refusal.value.code is Code.TRANSITION
    assert_nothing_left(node, root, uuid)


def test_an_init_without_its_socket_is_lost_once_it_is_needed(node: Node, root: Path) -> None:
    uuid = prepare(node, "RUNNING")
    noted = facts(root, uuid)
    os.unlink(Paths(root).instance_run(uuid) / "init.sock")
    assert node.get(uuid).state == "RUNNING"  # and so it is
    kill(noted["details"]["pid"])
    until(lambda: node.get(uuid).state in ("CONFIGURED", "DEFINED"))
    node.remove(uuid, force=True)
    assert not process.alive(noted["init_pid"], noted["init_start"])


# -- the node reboots --------------------------------------------------------------------------


IN_ANOTHER_BOOT = """
import json, os, sys
from pathlib import Path
from nativert.isolation.syscalls import CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, mount, unshare
unshare(CLONE_NEWNS)
mount("none", "/", flags=MS_REC | MS_PRIVATE)
mount(sys.argv[2], "/proc/sys/kernel/random/boot_id", flags=MS_BIND)
from nativert.runtime.node import Node
with Node(Path(sys.argv[1]), here=True) as node:
    print(json.dumps([(i.name, i.state, i.end and i.end.reason) for i in node.list()]))
"""


@pytest.mark.parametrize("state", ["CONFIGURED", "RUNNING", "PAUSED"])
def test_after_a_reboot_everything_is_defined_and_the_leftovers_go(
    node: Node, root: Path, tmp_path: Path, state: str
) -> None:
    uuid = prepare(node, state)
    noted = facts(root, uuid)
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("11111111-2222-4333-8444-555555555555\n")
    child = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_BOOT, str(root), str(boot_id)],
        capture_output=True,
        text=True,
        timeout=scale.LONG_S,
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == [["app", "DEFINED", "node-rebooted"]]
    assert not process.alive(noted["init_pid"], noted["init_start"])
    assert_nothing_left(node, root, uuid)
    live_on(node, uuid)


def test_a_recycled_pid_is_not_signalled(node: Node, root: Path) -> None:
    """Facts of another boot, and facts whose pid belongs to somebody else by now."""
    with subprocess.Popen(["/bin/sleep", "1000"]) as innocent:
        try:
            begun = process.start_time(innocent.pid)
            for changes in (
                {"boot_id": "gone", "init_pid": innocent.pid, "init_start": begun},
                {"init_pid": innocent.pid, "init_start": (begun or 0) - 1},
            ):
                uuid = prepare(node, "RUNNING")
                noted = facts(root, uuid)
                alter_facts(
                    root, uuid, details=noted["details"] | {"pid": 1, "start": 1}, **changes
                )
                lost = node.get(uuid)
                assert lost.state == "DEFINED"
                assert innocent.poll() is None
                assert not process.alive(noted["init_pid"], noted["init_start"])
                assert_nothing_left(node, root, uuid)
                node.undefine(uuid)
        finally:
            innocent.kill()


# -- the application ---------------------------------------------------------------------------


def test_an_end_that_nobody_saw_is_told_by_the_next_command(
    make_node: MakeNode, root: Path
) -> None:
    with make_node() as node:
        uuid = start(node, shell="until [ -e go ]; do sleep 0.02; done; exit 3")
        pid = node.get(uuid).pid
        assert pid is not None
    (Paths(root).instance_lib(uuid) / "data/go").touch()
    until(lambda: process.start_time(pid) is None, what="the end")
    until(lambda: (Paths(root).instance_run(uuid) / "exit.json").exists())
    told = make_node().get(uuid)
    assert told.state == "CONFIGURED"
    assert told.end is not None
    assert (told.end.reason, told.end.exit_code) == ("exited", 3)


def test_the_exit_of_an_earlier_run_is_not_taken_for_a_later_one(node: Node, root: Path) -> None:
    uuid = start(node, shell="test -e /data/again && exec sleep 1000; touch /data/again; exit 5")
    ended = node.wait(uuid, timeout_s=scale.LONG_S)
    assert ended.end is not None
    assert ended.end.code == 5
    exit_file = Paths(root).instance_run(uuid) / "exit.json"
    kept = exit_file.read_bytes()
    node.run(uuid)
    exit_file.write_bytes(kept)
    assert node.get(uuid).state == "RUNNING"
    # The process that runs it dies with the first end still in the store.
    node.stop(uuid)
    assert operate_in_a_child(root, "run", uuid, "run.started=kill") == -signal.SIGKILL
    running = node.get(uuid)
    assert (running.state, running.end) == ("RUNNING", None)


def test_killed_while_frozen(node: Node, root: Path) -> None:
    uuid = prepare(node, "PAUSED")
    pid = facts(root, uuid)["details"]["pid"]
    os.kill(pid, signal.SIGKILL)
    if driver(root).mode == "v1":
        # There the kernel lets nobody die in the freezer.
        assert node.get(uuid).state == "PAUSED"
        node.resume(uuid)
    ended = until(lambda: (i := node.get(uuid)).state == "CONFIGURED" and i)
    assert ended.end is not None
    assert ended.end.signal == "SIGKILL"
    assert node.run(uuid).state == "RUNNING"
    assert run_inside(node, uuid, "echo", "thawed") == (0, "thawed\n")
