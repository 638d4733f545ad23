"""A process moves from one node to another with what it has in its memory, by CRIU."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import scale
from aftermath import assert_nothing_left
from movers import Served, Wire, id_of
from nodes import make_descriptor, remove_node, run_inside, until

from nativert.errors import Code, NativertError
from nativert.isolation import process
from nativert.runtime import failpoints
from nativert.runtime.migration.messages import Kind, Message
from nativert.runtime.migration.source import Mover, Patience
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.vm, pytest.mark.cgroup_v2]

PATIENT = Patience(
    answer_s=scale.LONG_S, prepare_s=scale.LONG_S, silence_s=scale.LONG_S, commit_s=scale.LONG_S
)
# The number is nowhere but in memory; /data only hears of it.
COUNTER = """
import time
n = 0
with open("/data/numbers", "a", buffering=1) as numbers:
    while True:
        n += 1
        numbers.write(f"{n}\\n")
        print("at", n, flush=True)
        time.sleep(0.05)
"""


class Pair:
    """Two nodes; `here` has the instance at first."""

    def __init__(self, here: Node, there: Node) -> None:
        self.here, self.there = here, there
        self.roots = [node.paths.root or Path("/") for node in (here, there)]
        self.wire = Wire(*self.roots)
        self.served = [Served(here), Served(there)]

    def start(self, **fields: Any) -> str:
        descriptor = make_descriptor(name="live", migration_kind="LIVE", **fields)
        uuid = self.here.define(descriptor).instance
        self.here.configure(uuid)
        self.here.run(uuid)
        until(lambda: len(self.numbers(self.here, uuid)) > 3, what="the first numbers")
        return uuid

    def move(self, uuid: str, *, back: bool = False) -> dict[str, Any]:
        source, target = (self.there, 0) if back else (self.here, 1)
        return Mover(source, self.wire, patience=PATIENT).migrate(uuid, id_of(self.roots[target]))

    def numbers(self, node: Node, uuid: str) -> list[int]:
        path = node.paths.instance_lib(uuid) / "data/numbers"
        # A line that is being written has no end yet.
        text = path.read_text() if path.exists() else ""
        return [int(line) for line in text[: text.rfind("\n") + 1].split()]

    def goes_on(self, node: Node, uuid: str) -> None:
        """Return when more numbers have come, none left out and none twice."""
        assert node.get(uuid).state == "RUNNING"
        seen = len(self.numbers(node, uuid))
        until(lambda: len(self.numbers(node, uuid)) > seen + 3, what="more numbers")
        found = self.numbers(node, uuid)
        assert found == list(range(1, len(found) + 1))

    def refused(self, uuid: str) -> str:
        """Try to move it; return why that was refused. It goes on as if nothing had happened."""
        pid = self.here.get(uuid).pid
        with pytest.raises(NativertError) as caught:
            self.move(uuid)
        assert caught.value.code is Code.MIGRATE
        assert self.here.get(uuid).pid == pid
        self.goes_on(self.here, uuid)
        assert self.there.list() == []
        assert_nothing_left(self.there, self.roots[1], uuid)
        assert not (self.here.paths.instance_lib(uuid) / "checkpoint").exists()
        return str(caught.value)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    roots = [tmp_path / "a", tmp_path / "b"]
    with ExitStack() as opened:
        here, there = [opened.enter_context(Node(root)) for root in roots]
        for node in (here, there):
            node.list()
        pair = Pair(here, there)
        yield pair
        for served in pair.served:
            served.close()
    for root in roots:
        remove_node(root)


def test_a_counter_in_memory_goes_on_elsewhere_and_comes_back(pair: Pair) -> None:
    uuid = pair.start(python=COUNTER)
    inside = status(pair.here.get(uuid).pid)["NSpid"].split()[-1]
    for back in (False, True, False):
        told = pair.move(uuid, back=back)
        source, target = (pair.there, pair.here) if back else (pair.here, pair.there)
        assert told["state"] == "RUNNING"
        assert source.list() == []
        assert_nothing_left(source, source.paths.root or Path("/"), uuid)
        assert not source.paths.instance_lib(uuid).exists()
        pair.goes_on(target, uuid)
        assert status(target.get(uuid).pid)["NSpid"].split()[-1] == inside
        assert not (target.paths.instance_lib(uuid) / "checkpoint").exists()


def test_what_is_restored_is_confined_as_what_is_started(pair: Pair) -> None:
    uuid = pair.start(python=COUNTER)
    kept = ("NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Groups")
    before = status(pair.here.get(uuid).pid)
    limits = Path(f"/proc/{pair.here.get(uuid).pid}/limits").read_text()
    pair.move(uuid)
    pid = pair.there.get(uuid).pid
    assert pid is not None
    after = status(pid)
    assert [after[key] for key in kept] == [before[key] for key in kept]
    assert Path(f"/proc/{pid}/limits").read_text() == limits
    row = pair.there.get(uuid)
    first = next(iter(after["Uid"].split()))
    assert first == str(os.stat(pair.there.paths.instance_lib(uuid) / "data").st_uid)
    assert row.pid == pid
    init = int(status(pid)["PPid"])
    for kind in ("pid", "mnt", "net", "uts", "ipc"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/{init}/ns/{kind}")
    assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    assert uuid in Path(f"/proc/{pid}/cgroup").read_text()
    code, output = run_inside(pair.there, uuid, "sh", "-c", "cat /proc/2/cgroup; ls /run")
    assert (code, output) == (0, "0::/\n")


def test_its_output_pause_stop_and_end_are_as_before(pair: Pair) -> None:
    uuid = pair.start(python=COUNTER)
    pair.move(uuid)
    there = pair.there
    seen = len(list(there.logs(uuid)))
    until(lambda: len(list(there.logs(uuid))) > seen + 3, what="more output")
    assert there.pause(uuid).state == "PAUSED"
    assert there.resume(uuid).state == "RUNNING"
    pair.goes_on(there, uuid)
    assert there.stop(uuid).state == "CONFIGURED"
    end = there.get(uuid).end
    assert end is not None
    assert (end.reason, end.signal) == ("stopped", "SIGTERM")
    there.run(uuid)
    assert there.get(uuid).state == "RUNNING"


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        (
            "import threading\nthreading.Thread(target=lambda: time.sleep(999)).start()\n",
            "threads",
        ),
        ("import subprocess\nsubprocess.Popen(['/bin/sleep', '999'])\n", "processes"),
        ("open('/tmp/left', 'w').close()\n", "/tmp/left"),
        ("import socket\ns = socket.create_server(('127.0.0.1', 7000))\n", "is a socket"),
    ],
)
def test_what_cannot_be_restored_is_refused_before_anything_stops(
    pair: Pair, python: str, reason: str
) -> None:
    uuid = pair.start(python=f"import time\n{python}{COUNTER}")
    assert reason in pair.refused(uuid)


def test_criu_that_cannot_dump_leaves_the_application_as_it_was(pair: Pair) -> None:
    # A file that was removed and is larger than a megabyte is none that CRIU takes along.
    ghost = "ghost = open('/data/ghost', 'w+b'); ghost.truncate(2 << 20)\n"
    uuid = pair.start(python=f"import os\n{ghost}os.unlink('/data/ghost')\n{COUNTER}")
    assert "CRIU" in pair.refused(uuid)


def test_images_that_were_damaged_give_it_back(pair: Pair) -> None:
    uuid = pair.start(python=COUNTER)

    def damage(message: Message, deliver: Callable[[Message], Message]) -> Message:
        if message.kind is Kind.COMMIT:
            images = pair.there.paths.instance_lib(uuid) / "checkpoint/images"
            os.truncate(next(images.glob("core-*.img")), 20)
        return deliver(message)

    pair.wire.fault = damage
    assert "cannot be started there" in pair.refused(uuid)


def test_a_destination_with_another_program_refuses(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = pair.start(python=COUNTER)
    from nativert.runtime.migration import preflight

    real = preflight.accept

    def accept(context: Any, here: Any, live: Any) -> None:
        live.files[next(iter(live.files))] = "0" * 64
        real(context, here, live)

    monkeypatch.setattr(preflight, "accept", accept)
    assert "is another one here" in pair.refused(uuid)


def test_without_criu_nothing_is_stopped(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = pair.start(python=COUNTER)
    real = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **options: None if name == "criu" else real(name, **options)
    )
    assert "criu is not installed" in pair.refused(uuid)


@pytest.mark.parametrize("point", ["live.frozen", "live.dumping", "live.dumped", "migrate.sent"])
def test_a_source_that_dies_lets_it_go_on(pair: Pair, point: str) -> None:
    uuid = pair.start(python=COUNTER)
    pid = pair.here.get(uuid).pid
    child = os.fork()
    if not child:
        try:
            with Node(pair.roots[0]) as node:
                failpoints.arm(f"{point}=kill")
                Mover(node, pair.wire, patience=PATIENT).migrate(uuid, id_of(pair.roots[1]))
        finally:
            os._exit(70)
    _, how = os.waitpid(child, 0)
    assert os.WIFSIGNALED(how)
    assert pair.here.look(uuid).state.value == "RUNNING"
    assert pair.here.get(uuid).pid == pid
    pair.goes_on(pair.here, uuid)


def status(pid: int | None) -> dict[str, str]:
    assert pid is not None
    assert process.start_time(pid) is not None
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@pytest.mark.parametrize("point", ["land.starting", "run.intent", "run.started", "land.started"])
def test_a_destination_that_dies_restores_it_once(pair: Pair, point: str) -> None:
    uuid = pair.start(python=COUNTER)
    pair.served[1].close()
    child = os.fork()
    if not child:
        try:
            with Node(pair.roots[1]) as node:
                failpoints.arm(f"{point}=kill")
                Served(node)
                signal.pause()
        finally:
            os._exit(70)

    def serve_again(message: Message, deliver: Callable[[Message], Message]) -> Message:
        try:
            return deliver(message)
        except NativertError:
            pid, _ = os.waitpid(child, os.WNOHANG)
            if pid:
                pair.served[1] = Served(pair.there)
            raise

    pair.wire.fault = serve_again
    pair.move(uuid)
    assert pair.here.list() == []
    pair.goes_on(pair.there, uuid)
