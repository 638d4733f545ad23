"""What a node tells after the power was cut: nothing of the old boot, and nothing untrue.

`scripts/vm-test --reboot` calls this file once in each boot; a test that asks for it by
`cut_power` has the power cut when all tests of its boot have passed. Two nodes: the host's own,
whose run directory a reboot empties, and one with a root, whose run directory stays on the disk.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The integration tests' own, found through tests/vm/conftest.py.
from nodes import PYTHON, log_text, make_descriptor, remove_node, run_inside, start, tag_of, until

from nativert.isolation import process
from nativert.runtime.node import Node
from nativert.store import boot
from nativert.store.paths import Paths

pytestmark = [pytest.mark.vm, pytest.mark.systemd]

NOTES = Path("/root/before.json")
CUT = Path("/run/vm-test/cut")
ROOTS = (None, Path("/root/node"))
SERVE = f"exec {PYTHON} -m http.server --bind 0.0.0.0 80"
# Operations without end; each line that it writes is one that was carried out.
BUSY = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/integration"]
from nodes import make_descriptor
from nativert.runtime.node import Node
node = Node(Path(sys.argv[1]) if sys.argv[1] else None)
names = [node.define(make_descriptor(name=f"busy-{n}", shell="sleep 1000", veth=n == 0)).instance
         for n in range(3)]
while True:
    for step in (node.configure, node.run, node.pause, node.resume, node.stop, node.clean):
        for name in names:
            step(name)
        print(step.__name__, flush=True)
"""

# Kept, because nobody waits for them.
GOING_ON: list[subprocess.Popen[bytes]] = []


def cut_power() -> None:
    CUT.touch()


@pytest.fixture(params=ROOTS, ids=["host", "rooted"])
def root(request: pytest.FixtureRequest) -> Path | None:
    return request.param


@pytest.fixture
def node(root: Path | None) -> Iterator[Node]:
    with Node(root) as opened:
        yield opened


def note(**facts: object) -> None:
    """Keep *facts* for the next boot, on the disk when this returns."""
    kept = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    with NOTES.open("w") as file:
        json.dump(kept | facts, file)
        file.flush()
        os.fsync(file.fileno())


def noted() -> dict[str, object]:
    return json.loads(NOTES.read_text())


def states(node: Node) -> dict[str, tuple[str, str | None]]:
    return {row.name: (row.state, row.end and row.end.reason) for row in node.list()}


def instances_on(paths: Paths) -> list[str]:
    directory = paths.run / "i"
    return os.listdir(directory) if directory.exists() else []


def lifecycle(node: Node, name: str) -> None:
    """The instance goes through its states as if nothing had been."""
    node.configure(name)
    node.run(name)
    assert run_inside(node, name, "/bin/true")[0] == 0
    node.stop(name)
    node.clean(name)


# ---------------------------------------------------------------- boot 1: noted, written, cut


@pytest.mark.reboot(1)
def test_instances_in_every_state(node: Node, root: Path | None) -> None:
    port = 22081 if root else 22080
    ports = {"network": {"ports": [f"{port}:80/tcp"]}}
    start(node, name="running", shell=SERVE, veth=True, native=ports)
    start(node, name="paused", shell="sleep 1000")
    node.pause("paused")
    start(node, name="ended", shell="echo last words; exit 3")
    assert node.wait("ended", timeout_s=60).end.exit_code == 3
    start(node, name="configured", shell="sleep 1000")
    node.stop("configured")
    node.define(make_descriptor(name="defined", shell="sleep 1000"))
    paths = Paths(root)
    facts = [boot.read_facts(paths, row.instance) for row in node.list()]
    pids = {
        pid
        for known in facts
        if known
        for pid in (known.init_pid, known.launcher_pid, known.details.get("pid"))
        if pid
    }
    assert len(pids) >= 6
    note(**{f"pids-{root}": sorted(pids), "boot_id": boot.boot_id()})
    os.sync()
    cut_power()


# ---------------------------------------------------------------- boot 2: told truly


@pytest.fixture(scope="module")
def recycled() -> Iterator[dict[int, int]]:
    """Processes of this boot that have the pids of the old one, and their start times."""
    sleeping = []
    known = noted()
    for pid in sorted({*known[f"pids-{None}"], *known[f"pids-{ROOTS[1]}"]}):
        # The next process gets the next number that is free.
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        sleeping.append(subprocess.Popen(["sleep", "1000"]))
    found = {child.pid: process.start_time(child.pid) for child in sleeping}
    yield found
    for child in sleeping:
        child.kill()
        child.wait()


@pytest.mark.reboot(2)
def test_it_was_a_reboot(recycled: dict[int, int]) -> None:
    known = noted()
    assert known["boot_id"] != boot.boot_id()
    old = {*known[f"pids-{None}"], *known[f"pids-{ROOTS[1]}"]}
    # Of the rest the kernel's own processes and systemd's have the numbers already.
    assert len(old & recycled.keys()) >= len(old) // 2


@pytest.mark.reboot(2)
def test_what_was_running_is_said_to_have_ended_by_the_reboot(
    node: Node, root: Path | None, recycled: dict[int, int]
) -> None:
    ended = ("DEFINED", "node-rebooted")
    expected = {
        "running": ended,
        "paused": ended,
        "configured": ("DEFINED", "stopped"),
        "ended": ("DEFINED", "exited"),
        "defined": ("DEFINED", None),
    }
    assert states(node) == expected
    rows = {row.name: row for row in node.list()}
    assert rows["ended"].end.exit_code == 3
    assert rows["running"].end.exit_code is None
    assert all(row.pid is None and row.uptime_s is None for row in rows.values())
    assert log_text(node, "ended") == "last words\n"
    assert [found for found in node.gc() if not found.removed] == []
    assert node.gc(dry_run=True) == []
    assert instances_on(Paths(root)) == []
    assert states(node) == expected
    for pid, started in recycled.items():
        assert process.alive(pid, started), f"the process with the old pid {pid} was ended"


@pytest.mark.reboot(2)
def test_what_was_running_can_be_started_again(
    node: Node, root: Path | None, recycled: dict[int, int]
) -> None:
    import http.client

    node.configure("running")
    node.run("running")
    connection = http.client.HTTPConnection("127.0.0.1", 22081 if root else 22080, timeout=30)

    def answers() -> bool:
        try:
            connection.request("GET", "/")
            return connection.getresponse().read() != b""
        except OSError:
            connection.close()
            return False

    until(answers, what="the published port answers")
    connection.close()
    node.stop("running")
    node.clean("running")
    for name in ("paused", "configured", "ended", "defined"):
        node.configure(name)
        node.clean(name)
    for pid, started in recycled.items():
        assert process.alive(pid, started)


@pytest.mark.reboot(2)
def test_instances_whose_files_the_kernel_has_not_written() -> None:
    # From here on only what is fsync'ed is on the disk at the time of the cut.
    subprocess.run(["mount", "-o", "remount,commit=300", "/"], check=True)
    for setting in ("dirty_writeback_centisecs", "dirty_expire_centisecs"):
        Path("/proc/sys/vm", setting).write_text("0" if "writeback" in setting else "60000")
    for root in ROOTS:
        with Node(root) as node:
            start(node, name="late", shell="echo before the cut; sleep 1000", veth=True)
            start(node, name="again", shell="exit 5")
            assert node.wait("again", timeout_s=60).end.exit_code == 5
            node.remove("defined")
    cut_power()


# ---------------------------------------------------------------- boot 3: not synced


@pytest.mark.reboot(3)
def test_what_was_reported_is_kept_without_a_sync(node: Node, root: Path | None) -> None:
    found = states(node)
    assert found["late"] == ("DEFINED", "node-rebooted")
    assert found["again"] == ("DEFINED", "exited")
    assert "defined" not in found
    assert [one for one in node.gc() if not one.removed] == []
    assert node.gc(dry_run=True) == []
    assert instances_on(Paths(root)) == []
    # The log was not forced to the disk; what is there of it can be read.
    assert log_text(node, "late") in ("before the cut\n", "")
    lifecycle(node, "late")


@pytest.mark.reboot(3)
def test_operations_go_on_when_the_power_is_cut() -> None:
    for root in ROOTS:
        done = Path(f"/run/busy-{root is None}")
        with done.open("w") as output:
            # In the background until the cut, whatever it is at then.
            busy = subprocess.Popen(
                [sys.executable, "-c", BUSY, str(root or "")], stdout=output, stderr=output
            )
        GOING_ON.append(busy)
    for root in ROOTS:
        done = Path(f"/run/busy-{root is None}")
        until(lambda done=done: "stop" in done.read_text(), what=f"stop in {done}", pause_s=0.2)
    assert [busy.poll() for busy in GOING_ON] == [None, None]
    cut_power()


# ---------------------------------------------------------------- boot 4: in the middle


@pytest.mark.reboot(4)
def test_an_operation_that_was_cut_off_is_undone(node: Node, root: Path | None) -> None:
    names = [f"busy-{n}" for n in range(3)]
    found = states(node)
    assert {*names} <= found.keys()
    assert {state for state, _ in found.values()} == {"DEFINED"}
    assert {found[name][1] for name in names} <= {None, "node-rebooted", "stopped"}
    assert [one for one in node.gc() if not one.removed] == []
    assert node.gc(dry_run=True) == []
    for name in names:
        lifecycle(node, name)


@pytest.mark.reboot(4)
def test_the_store_is_whole(root: Path | None) -> None:
    database = sqlite3.connect(f"file:{Paths(root).database}?mode=ro", uri=True)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


@pytest.mark.reboot(4)
def test_the_node_can_be_removed(root: Path | None) -> None:
    tag = tag_of(root)
    remove_node(root)
    # The other node has links of its own until its turn comes.
    assert [name for name in os.listdir("/sys/class/net") if tag in name] == []
