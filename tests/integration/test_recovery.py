"""Whatever is killed, lost or damaged: the next command tells the truth and nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scale
from conftest import MakeNode
from nodes import (
    address,
    log_text,
    make_descriptor,
    run_inside,
    start,
    tag_of,
    until,
    until_logged,
)

from nativert.errors import Code, NativertError, StepError
from nativert.isolation import cgroups, process
from nativert.isolation.cgroups.driver import INIT, LAUNCHER, Driver
from nativert.runtime import failpoints
from nativert.runtime.node import Node
from nativert.store.claims import Claims
from nativert.store.identity import open_identity
from nativert.store.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.netns]

PORT = 22000 + os.getpid() % 500
FOREVER = "echo up; exec sleep 1000"
MIB = 1 << 20


def app(**fields: Any) -> dict[str, Any]:
    """A descriptor that makes configure pass every step."""
    return {
        "name": "app",
        "shell": FOREVER,
        "veth": True,
        "configuration": {"conf_type": "SCRIPT", "script": "echo configured > /data/made"},
        "native": {
            "memory": {"max": "64M"},
            "stop": {"grace": "2s"},
            "network": {"ports": [f"{PORT}:80"]},
        },
        **fields,
    }


def driver(root: Path) -> Driver:
    return cgroups.detect(f"nativert-{tag_of(root)}")


def facts_path(root: Path, uuid: str) -> Path:
    return Paths(root).instance_run(uuid) / "boot.json"


def facts(root: Path, uuid: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(facts_path(root, uuid).read_text())
    return found


def alter_facts(root: Path, uuid: str, **changes: object) -> None:
    facts_path(root, uuid).write_text(json.dumps(facts(root, uuid) | changes))


def kill(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert process.wait_end(pidfd, 10.0)
    finally:
        os.close(pidfd)


def left_of(node: Node, root: Path, uuid: str) -> list[str]:
    """What the host still has of an instance that has nothing configured."""
    row = next((r for r in node._context.store.rows() if r.uuid == uuid), None)
    found = [f"cgroup {name}" for name in driver(root).names() if uuid in name]
    found += [f"init {pid}" for pid in driver(root).open(INIT).pids()]
    if row is not None:
        links = node._context.network.links()
        names = [node._context.link_name(interface.link) for interface in row.interfaces]
        found += [f"link {name}" for name in names if name in links]
        found += [f"port {port}" for port in node._context.network.published()]
    identity = open_identity(Paths(root), Claims())
    found += [f"claim {uuid}"] if uuid in Claims().ports(identity.id) else []
    if Paths(root).instance_run(uuid).exists():
        found.append("run directory")
    if (Paths(root).instance_lib(uuid) / "image").exists():
        found.append("image")
    return found


def assert_nothing_left(node: Node, root: Path, uuid: str) -> None:
    # A link is deleted in the background.
    until(
        lambda: not left_of(node, root, uuid),
        what=f"nothing left of {uuid}",
        deadline_s=scale.seconds(5),
    )


def live_on(node: Node, uuid: str) -> None:
    """Take the instance from wherever it is through the rest of a life."""
    state = node.get(uuid).state
    if state == "PAUSED":
        state = node.resume(uuid).state
    if state == "RUNNING":
        assert run_inside(node, uuid, "true") == (0, "")
        state = node.stop(uuid).state
    if state == "CONFIGURED":
        state = node.clean(uuid).state
    assert state == "DEFINED"
    node.configure(uuid)
    node.run(uuid)
    assert node.stop(uuid).state == "CONFIGURED"
    node.clean(uuid)
    node.undefine(uuid)


# -- the process that operates dies, or a step fails, at every step boundary -----------------

OPERATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    # operation: the state before it, and its arguments
    "define": ("", {}),
    "configure": ("DEFINED", {}),
    "run": ("CONFIGURED", {}),
    "stop": ("RUNNING", {}),
    "pause": ("RUNNING", {}),
    "resume": ("PAUSED", {}),
    "scale": ("RUNNING", {"change": {"memory_max": 96 * MIB}}),
    "clean": ("CONFIGURED", {}),
    "undefine": ("DEFINED", {}),
}
STEPS_OF = {"end": "stop", "release": "clean"}
# Where the operation had come too far to be taken back, or not far enough to be seen.
SETTLED_AFTER_KILL = {
    "define.stored": "DEFINED",
    "run.started": "RUNNING",
    "run.noted": "RUNNING",
    "stop.ended": "CONFIGURED",
    "end.stored": "CONFIGURED",
    "pause.switched": "PAUSED",
    "resume.switched": "RUNNING",
    "clean.intent": "DEFINED",
    "clean.stored": "DEFINED",
    "release.network": "DEFINED",
    "release.init": "DEFINED",
    "release.cgroup": "DEFINED",
    "undefine.stored": "",
}
SETTLED_AFTER_FAILURE = {
    "stop.ended": "CONFIGURED",
    "end.stored": "CONFIGURED",
    "clean.stored": "DEFINED",
    "release.network": "DEFINED",
    "release.init": "DEFINED",
    "release.cgroup": "DEFINED",
}
# Behind the last step nothing is left that could fail.
ONLY_KILLED = {"define.stored", "undefine.stored"}

CHILD = """
import json, sys
from pathlib import Path
sys.path[:] = {path!r}
from nodes import make_descriptor
from nativert.runtime.node import Node
root, verb, ref, arguments = sys.argv[1:]
with Node(Path(root)) as node:
    if verb == "define":
        node.define(make_descriptor(name=ref, shell="exec sleep 1000"))
    else:
        getattr(node, verb)(ref, **json.loads(arguments))
"""


def operation_of(point: str) -> str:
    word = point.partition(".")[0]
    return STEPS_OF.get(word, word)


def operate_in_a_child(
    root: Path, verb: str, ref: str, failpoint: str = "", **arguments: Any
) -> int:
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            CHILD.format(path=sys.path),
            str(root),
            verb,
            ref,
            json.dumps(arguments),
        ],
        env=os.environ | {"NATIVERT_FAILPOINTS": failpoint},
        timeout=scale.seconds(60),
    )
    return child.returncode


def prepare(node: Node, state: str) -> str:
    uuid = node.define(make_descriptor(**app())).instance
    for step in {
        "DEFINED": (),
        "CONFIGURED": ("configure",),
        "RUNNING": ("configure", "run"),
        "PAUSED": ("configure", "run", "pause"),
    }.get(state, ()):
        getattr(node, step)(uuid)
    return uuid


@pytest.mark.parametrize("point", failpoints.POINTS)
def test_a_killed_operation_is_settled_by_the_next_command(
    make_node: MakeNode, root: Path, point: str
) -> None:
    node = make_node()
    verb = operation_of(point)
    before, arguments = OPERATIONS[verb]
    uuid = prepare(node, before)
    ref = "defined" if verb == "define" else uuid

    assert operate_in_a_child(root, verb, ref, f"{point}=kill", **arguments) == -signal.SIGKILL

    found = {instance.name: instance for instance in node.list()}
    state = SETTLED_AFTER_KILL.get(point, before)
    if verb == "define":
        assert found["defined"].state == state
        return
    if not state:
        assert not found
        node.gc()
        assert node.gc(dry_run=True) == []
        return
    assert found["app"].state == state
    with_init = state in ("CONFIGURED", "RUNNING", "PAUSED")
    if not with_init:
        assert_nothing_left(node, root, uuid)
    else:
        noted = facts(root, uuid)
        assert noted["intent"] is None
        assert noted["state"] == state
        assert process.alive(noted["init_pid"], noted["init_start"])
    if state == "RUNNING":
        assert found["app"].pid is not None
        assert process.start_time(found["app"].pid)
        limit = 96 * MIB if point == "scale.stored" else 64 * MIB
        cgroup = driver(root).open(noted["cgroup"])
        assert cgroup.read().memory_max == limit
        assert node.stats([uuid])[0].memory_max == limit
        assert not cgroup.frozen()
    live_on(node, uuid)


@pytest.mark.parametrize("point", [p for p in failpoints.POINTS if p not in ONLY_KILLED])
def test_a_failed_operation_leaves_the_state_it_came_from(
    make_node: MakeNode, root: Path, point: str
) -> None:
    node = make_node()
    verb = operation_of(point)
    before, arguments = OPERATIONS[verb]
    uuid = prepare(node, before)
    failpoints.arm(f"{point}=enospc")
    try:
        with pytest.raises(NativertError) as failure:
            getattr(node, verb)(uuid, **arguments)
    finally:
        failpoints.arm("")
    assert point in str(failure.value)
    state = SETTLED_AFTER_FAILURE.get(point, before)
    assert node.get(uuid).state == state
    if state == "DEFINED":
        assert_nothing_left(node, root, uuid)
    if state == "RUNNING":
        cgroup = driver(root).open(facts(root, uuid)["cgroup"])
        assert cgroup.read().memory_max == 64 * MIB
        assert not cgroup.frozen()
    live_on(node, uuid)


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
    (launcher,) = driver(root).open(LAUNCHER).pids()

    kill(launcher)

    seen = len(log_text(node, first))
    until(lambda: len(log_text(node, first)) > seen, what="the log goes on")
    assert run_inside(node, first, "echo", "here") == (0, "here\n")
    with open(Paths(root).instance_lib(ends) / "data/go", "w") as go:
        go.write("\n")
    ended = node.wait(ends, timeout_s=scale.seconds(10))
    assert ended.end is not None
    assert (ended.state, ended.end.code) == ("CONFIGURED", 7)

    second = start(node, name="second", shell=FOREVER, veth=True)
    with make_node() as other:  # and so does a command that comes later
        assert {i.name: i.state for i in other.list()} == {
            "app": "RUNNING",
            "ends": "CONFIGURED",
            "second": "RUNNING",
        }
    (successor,) = driver(root).open(LAUNCHER).pids()
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
        (launcher,) = driver(root).open(LAUNCHER).pids()
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
    kill(facts(root, uuid)["init_pid"])

    lost = node.get(uuid)

    assert lost.state == "DEFINED"
    assert lost.end is not None
    assert lost.end.reason == "init-lost"
    assert lost.end.exit_code is None
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
        timeout=scale.seconds(60),
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
        uuid = start(node, shell="sleep 0.2; exit 3")
        pid = node.get(uuid).pid
        assert pid is not None
    until(lambda: process.start_time(pid) is None, what="the end")
    until(lambda: (Paths(root).instance_run(uuid) / "exit.json").exists())
    told = make_node().get(uuid)
    assert told.state == "CONFIGURED"
    assert told.end is not None
    assert (told.end.reason, told.end.exit_code) == ("exited", 3)


def test_the_exit_of_an_earlier_run_is_not_taken_for_a_later_one(node: Node, root: Path) -> None:
    uuid = start(node, shell="test -e /data/again && exec sleep 1000; touch /data/again; exit 5")
    ended = node.wait(uuid, timeout_s=scale.seconds(10))
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
    ended = until(lambda: (i := node.get(uuid)).state == "CONFIGURED" and i)
    assert ended.end is not None
    assert ended.end.signal == "SIGKILL"
    assert node.run(uuid).state == "RUNNING"
    assert run_inside(node, uuid, "echo", "thawed") == (0, "thawed\n")


@pytest.mark.parametrize("damage", [b"", b'{"run": 1, "boot', b"\x00" * 4096, b"[]"])
def test_a_damaged_exit_file_costs_nothing_while_init_lives(
    node: Node, root: Path, damage: bytes
) -> None:
    uuid = start(node, shell="exit 9")
    exit_file = Paths(root).instance_run(uuid) / "exit.json"
    until(exit_file.exists)
    exit_file.write_bytes(damage)
    told = node.get(uuid)
    assert told.state == "CONFIGURED"
    assert told.end is not None
    assert told.end.code == 9


# -- damaged and removed files -----------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"boot_id": "', b"\xff" * 100, b'{"boot_id": "x", "state": "GONE"}', b"[1, 2]"],
)
def test_damaged_facts_are_put_aside_and_the_instance_is_defined(
    node: Node, root: Path, damage: bytes
) -> None:
    uuid = prepare(node, "RUNNING")
    noted = facts(root, uuid)
    facts_path(root, uuid).write_bytes(damage)
    assert node.get(uuid).state == "DEFINED"
    assert not process.alive(noted["init_pid"], noted["init_start"])
    assert_nothing_left(node, root, uuid)
    live_on(node, uuid)


@pytest.mark.parametrize("state", ["CONFIGURED", "RUNNING", "PAUSED"])
def test_a_run_directory_removed_from_outside(node: Node, root: Path, state: str) -> None:
    uuid = prepare(node, state)
    noted = facts(root, uuid)
    shutil.rmtree(Paths(root).instance_run(uuid))
    assert node.get(uuid).state == "DEFINED"
    assert not process.alive(noted["init_pid"], noted["init_start"])
    assert_nothing_left(node, root, uuid)
    live_on(node, uuid)


def test_a_damaged_store_refuses_and_kills_nobody(make_node: MakeNode, root: Path) -> None:
    with make_node() as node:
        uuid = start(node, shell=FOREVER)
        noted = facts(root, uuid)
    database = Paths(root).database
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    kept = database.read_bytes()
    for damage in (kept[: len(kept) // 2], kept[:100], b"not a database", b""):
        database.write_bytes(damage)
        with pytest.raises(NativertError) as refusal, Node(root) as broken:
            broken.list()
            broken.get(uuid)
        assert refusal.value.code in (Code.STORE, Code.NOT_FOUND)
        assert process.alive(noted["init_pid"], noted["init_start"])
    database.write_bytes(kept)
    for side in ("-wal", "-shm"):
        Path(f"{database}{side}").unlink(missing_ok=True)
    assert make_node().get(uuid).state == "RUNNING"


def test_a_damaged_row_kills_nobody_and_can_be_removed(node: Node, root: Path) -> None:
    healthy = start(node, name="healthy", shell=FOREVER, veth=True)
    damaged = start(node, name="damaged", shell=FOREVER, veth=True)
    init = facts(root, damaged)
    with sqlite3.connect(Paths(root).database) as connection:
        connection.execute("UPDATE instances SET record = '{' WHERE name = 'damaged'")
    connection.close()
    assert [i.name for i in node.list()] == ["healthy"]
    assert node.gc() == []
    assert process.alive(init["init_pid"], init["init_start"])
    node.remove(damaged, force=True)
    assert not process.alive(init["init_pid"], init["init_start"])
    assert node.gc() == []
    assert node.get(healthy).state == "RUNNING"


# -- kernel objects taken away -----------------------------------------------------------------


def directories_of(node: Node, root: Path, uuid: str) -> list[Path]:
    name = f"nativert-{tag_of(root)}/i-{uuid}"
    return [path for top in Path("/sys/fs/cgroup").iterdir() if (path := top / name).is_dir()]


def test_a_cgroup_emptied_from_outside(node: Node, root: Path) -> None:
    uuid = prepare(node, "RUNNING")
    for directory in directories_of(node, root, uuid):
        for pid in (directory / "cgroup.procs").read_text().split():
            (directory.parent.parent / "cgroup.procs").write_text(pid)
    assert node.get(uuid).state == "RUNNING"
    with pytest.raises(StepError, match="not in its cgroup"):
        node.pause(uuid)
    assert node.get(uuid).state == "RUNNING"
    assert node.stop(uuid).state == "CONFIGURED"
    live_on(node, uuid)


@pytest.mark.parametrize("state", ["CONFIGURED", "RUNNING"])
def test_a_cgroup_removed_from_outside(node: Node, root: Path, state: str) -> None:
    uuid = prepare(node, state)
    for directory in directories_of(node, root, uuid):
        for pid in (directory / "cgroup.procs").read_text().split():
            (directory.parent.parent / "cgroup.procs").write_text(pid)
        until(lambda directory=directory: gone(directory))
    assert node.get(uuid).state == state
    node.stats([uuid])
    if state == "RUNNING":
        for verb in ("pause", "scale"):
            with pytest.raises(NativertError):
                getattr(node, verb)(uuid, **OPERATIONS[verb][1])
            assert node.get(uuid).state == "RUNNING"
        assert node.stop(uuid).state == "CONFIGURED"
    with pytest.raises(NativertError):
        node.run(uuid)
    assert node.get(uuid).state == "CONFIGURED"
    live_on(node, uuid)


def gone(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def test_a_link_removed_from_outside(node: Node, root: Path) -> None:
    uuid = prepare(node, "RUNNING")
    link = facts(root, uuid)["links"][0]["link"]
    subprocess.run(["ip", "link", "del", link], check=True)
    assert node.get(uuid).state == "RUNNING"
    assert node.stats([uuid])[0].net_rx_bytes is None
    assert node.stop(uuid).state == "CONFIGURED"
    live_on(node, uuid)


# -- several nodes -----------------------------------------------------------------------------


def test_the_clean_up_of_one_node_changes_nothing_of_another(
    make_node: MakeNode, tmp_path: Path
) -> None:
    roots = tmp_path / "one", tmp_path / "other"
    one, other = (make_node(root) for root in roots)
    server = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=80, bind='0.0.0.0')"
    published = {"network": {"ports": [f"{PORT}:80"]}}
    kept = start(other, python=server, veth=True, native=published)
    until_logged(other, kept, "Serving")
    host = address(other, kept)
    before = host_state(other, roots[1], kept)
    for _ in range(3):
        uuid = start(one, shell=FOREVER, veth=True)
        with pytest.raises(NativertError) as taken:
            one.configure(
                one.define(
                    make_descriptor(
                        name="taken",
                        shell=FOREVER,
                        veth=True,
                        native=published,
                    )
                ).instance
            )
        assert taken.value.code is Code.PORT_TAKEN
        one.remove("taken")
        kill(facts(roots[0], uuid)["init_pid"])
        one.gc()
        one.remove(uuid)
        assert all(found.removed for found in one.gc())
        assert host_state(other, roots[1], kept) == before
    assert one.gc(dry_run=True) == []
    for where in ((host, 80), ("127.0.0.1", PORT)):
        socket.create_connection(where, timeout=scale.seconds(5)).close()
    assert run_inside(other, kept, "echo", "alive") == (0, "alive\n")


def host_state(node: Node, root: Path, uuid: str) -> dict[str, object]:
    """What of a node another one could have changed."""
    tag = tag_of(root)
    table = subprocess.run(
        ["nft", "list", "table", "ip", f"nativert_{tag}"], capture_output=True, text=True
    )
    table_inet = subprocess.run(
        ["nft", "list", "table", "inet", f"nativert_{tag}"], capture_output=True, text=True
    )
    noted = facts(root, uuid)
    return {
        "facts": noted,
        "alive": process.alive(noted["init_pid"], noted["init_start"]),
        "links": sorted(node._context.network.links()),
        "bridge": os.path.exists(f"/sys/class/net/nrt-{tag}"),
        "tables": (table.stdout, table_inet.stdout),
        "cgroups": driver(root).names(),
        "launcher": driver(root).open(LAUNCHER).pids(),
        "claims": Claims().ports(open_identity(Paths(root), Claims()).id),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    }


def test_a_copied_root_is_refused_while_its_owner_lives(
    node: Node, root: Path, tmp_path: Path
) -> None:
    uuid = start(node, shell=FOREVER)
    copy = tmp_path / "copy"
    shutil.copytree(root / "var", copy / "var", ignore=lambda *_: ["data"])
    with pytest.raises(NativertError, match="copy"):
        Node(copy)
    assert node.get(uuid).state == "RUNNING"
