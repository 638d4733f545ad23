"""Many commands at once: one instance is served in order, different ones do not wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest
import scale
from nodes import (
    CLI,
    MakeNode,
    driver_of,
    launcher_of,
    make_descriptor,
    make_document,
    run_inside,
    start,
    until,
)

from nativert.errors import Code, NativertError, TransitionError, UnknownInstanceError
from nativert.isolation.cgroups.driver import INIT, LAUNCHER
from nativert.runtime.node import Node
from nativert.store.locks import InstanceLock
from nativert.store.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.netns]

FOREVER = "exec sleep 1000"
THREADS = scale.count(40)
PROCESSES = scale.count(10, least=2)

# A process of its own: for each operation it opens the node, waits for the word, carries it out and
# tells the outcome.
CHILD = """
import sys
from pathlib import Path
from nativert.errors import NativertError
from nativert.runtime.node import Node
root, ref = sys.argv[1:]
for line in sys.stdin:
    with Node(Path(root)) as node:
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            getattr(node, line.strip())(ref)
        except NativertError as e:
            print(type(e).__name__, flush=True)
        else:
            print("done", flush=True)
"""


class Commands:
    """Fifty commands that are let go at the same moment."""

    def __init__(self, root: Path, node: Node, uuid: str) -> None:
        self.node, self.uuid = node, uuid
        self._children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, str(root), uuid],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(PROCESSES)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.communicate()

    def outcomes(self, verb: str) -> Counter[str]:
        """Return how often *verb* was done, and how often refused with which error."""
        self._tell(verb)
        assert self._told() == ["ready"] * PROCESSES
        go = threading.Barrier(THREADS + 1)
        with ThreadPoolExecutor(THREADS) as threads:
            told = [threads.submit(self._one, verb, go) for _ in range(THREADS)]
            go.wait(scale.LONG_S)
            self._tell("go")
            answers = [*self._told(), *(each.result(scale.LONG_S) for each in told)]
        return Counter(answers)

    def _tell(self, word: str) -> None:
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write(f"{word}\n")
            child.stdin.flush()

    def _told(self) -> list[str]:
        return [child.stdout.readline().strip() for child in self._children if child.stdout]

    def _one(self, verb: str, go: threading.Barrier) -> str:
        go.wait(scale.LONG_S)
        try:
            getattr(self.node, verb)(self.uuid)
        except NativertError as e:
            return type(e).__name__
        return "done"


def test_fifty_commands_at_once_take_each_edge_once(node: Node, root: Path) -> None:
    uuid = node.define(make_descriptor(shell=FOREVER, veth=True)).instance
    refused = THREADS + PROCESSES - 1
    with Commands(root, node, uuid) as commands:
        for verb, state in (
            ("configure", "CONFIGURED"),
            ("run", "RUNNING"),
            ("pause", "PAUSED"),
            ("resume", "RUNNING"),
            ("stop", "CONFIGURED"),
            ("clean", "DEFINED"),
        ):
            assert commands.outcomes(verb) == {"done": 1, "TransitionError": refused}, verb
            assert node.get(uuid).state == state
            inits = driver_of(root).open(INIT).pids()
            assert len(inits) == (state != "DEFINED")
        told = commands.outcomes("undefine")
    assert told["done"] == 1
    assert told.total() - 1 == told["UnknownInstanceError"]
    assert node.gc(dry_run=True) != []  # the node's own network, until gc
    assert not Paths(root).instances_locked()


def test_a_mixture_of_operations_is_a_path_through_the_table(node: Node, root: Path) -> None:
    """Whoever comes first: no edge was taken more often than the one back."""
    uuid = node.define(make_descriptor(shell=FOREVER)).instance
    verbs = ["clean", "configure", "pause", "resume", "run", "stop"]
    done: list[str] = []

    def work(seed: int) -> None:
        with Node(root) as mine:
            for step in range(12):
                verb = verbs[(seed * 5 + step * 7) % len(verbs)]
                try:
                    getattr(mine, verb)(uuid)
                except TransitionError:
                    continue
                done.append(verb)

    with ThreadPoolExecutor(8) as threads:
        for each in [threads.submit(work, seed) for seed in range(8)]:
            each.result(4 * scale.LONG_S)
    counts = Counter(done)
    state = node.get(uuid).state
    level = {"DEFINED": 0, "CONFIGURED": 1, "RUNNING": 2, "PAUSED": 3}[state]
    assert counts["configure"] - counts["clean"] == (level >= 1)
    assert counts["run"] - counts["stop"] == (level >= 2)
    assert counts["pause"] - counts["resume"] == (level >= 3)
    assert len(done) > 10


def test_a_command_that_waits_too_long_is_told_by_whom(node: Node, root: Path) -> None:
    uuid = node.define(make_descriptor(shell=FOREVER)).instance
    with InstanceLock(Paths(root), uuid):
        lock = InstanceLock(Paths(root), uuid, timeout_s=0.1)
        with pytest.raises(NativertError, match=f"held by process {os.getpid()}") as late:
            lock.acquire()
        assert late.value.code is Code.TIMEOUT
        # Questions do not wait for it.
        assert node.get(uuid).state == "DEFINED"


def test_different_instances_do_not_wait_for_each_other(node: Node, root: Path) -> None:
    """A script keeps one in configure; others live whole lives meanwhile, in every way."""
    script = {"conf_type": "SCRIPT", "script": "while ! test -e /data/go; do sleep 0.02; done"}
    slow = node.define(make_descriptor(name="slow", shell=FOREVER, configuration=script)).instance
    go = Paths(root).instance_lib(slow) / "data/go"
    with ThreadPoolExecutor(1) as thread:
        configuring = thread.submit(node.configure, slow)
        try:
            until(go.parent.is_dir)
            for _ in range(2):  # in this process, and so with the same launcher client
                uuid = start(node, name="quick", shell=FOREVER, veth=True)
                node.pause(uuid)
                node.resume(uuid)
                node.remove(uuid, force=True)
            assert node.get(slow).state == "DEFINED"
            # gc looks around, and leaves alone what is being made.
            assert [found for found in node.gc() if found.name.endswith(slow)] == []
            assert not configuring.done()
        finally:
            until(go.parent.is_dir)
            go.touch()
        assert configuring.result(scale.LONG_S).state == "CONFIGURED"
    assert node.run(slow).state == "RUNNING"


def test_threads_that_configure_at_once_get_their_own_inits(node: Node, root: Path) -> None:
    names = [f"n{number}" for number in range(8)]
    uuids = [
        node.define(make_descriptor(name=name, shell=FOREVER, veth=True)).instance for name in names
    ]
    with ThreadPoolExecutor(len(names)) as threads:
        for _ in range(2):
            for each in [threads.submit(node.configure, uuid) for uuid in uuids]:
                each.result(scale.LONG_S)
            for name, uuid in zip(names, uuids, strict=True):
                node.run(uuid)
                assert run_inside(node, uuid, "hostname") == (0, f"{name}\n")
            for each in [threads.submit(node.stop, uuid) for uuid in uuids]:
                each.result(scale.LONG_S)
            for each in [threads.submit(node.clean, uuid) for uuid in uuids]:
                each.result(scale.LONG_S)
    assert driver_of(root).open(INIT).pids() == []


def test_gc_beside_operations_takes_nothing_that_lives(make_node: MakeNode, root: Path) -> None:
    node = make_node()
    stop = threading.Event()

    def sweep() -> int:
        rounds = 0
        with Node(root) as mine:
            while not stop.is_set():
                mine.gc()
                mine.list()
                rounds += 1
        return rounds

    with ThreadPoolExecutor(1) as thread:
        sweeping = thread.submit(sweep)
        try:
            for _ in range(10):
                uuid = start(node, shell=FOREVER, veth=True)
                assert run_inside(node, uuid, "true") == (0, "")
                assert node.get(uuid).state == "RUNNING"
                node.stop(uuid)
                node.clean(uuid)
                node.undefine(uuid)
        finally:
            stop.set()
        assert sweeping.result(scale.LONG_S) > 3


def test_two_commands_start_one_launcher(make_node: MakeNode, root: Path, tmp_path: Path) -> None:
    node = make_node()
    node.define(make_descriptor(name="a", shell=FOREVER))
    node.define(make_descriptor(name="b", shell=FOREVER))
    environment = os.environ | {"NATIVERT_ROOT": str(root)}
    launcher = driver_of(root).open(LAUNCHER)
    for _ in range(3):
        assert launcher.pids() == []
        both = [subprocess.Popen([*CLI, "configure", name], env=environment) for name in ("a", "b")]
        assert [each.wait(scale.LONG_S) for each in both] == [0, 0]
        assert launcher_of(root)
        assert [instance.state for instance in node.list()] == ["CONFIGURED"] * 2
        node.clean("a")
        node.clean("b")
        assert all(found.removed for found in node.gc())


def test_defining_at_once_gives_everyone_its_own(make_node: MakeNode, root: Path) -> None:
    """Ids, addresses and links are never given twice; a name only once."""
    make_node()
    document = json.dumps(make_document(name="same", shell=FOREVER, veth=True))

    def define(number: int) -> str:
        from nativert.fdu.descriptor import decode

        with Node(root) as mine:
            mine.define(decode(document.encode(), source="test"), name=f"own{number}")
            try:
                mine.define(decode(document.encode(), source="test"))
            except NativertError as e:
                return e.code.word
            return "done"

    with ThreadPoolExecutor(8) as threads:
        told = Counter(threads.map(define, range(16)))
    assert told == {"done": 1, "name-taken": 15}
    with Node(root) as node:
        rows = node._context.store.rows()
    given: dict[str, Callable[[Any], object]] = {
        "ids": lambda row: row.id_range,
        "address": lambda row: row.interfaces[0].address,
        "link": lambda row: row.interfaces[0].link,
    }
    for what, of in given.items():
        assert len({of(row) for row in rows}) == len(rows) == 17, what


def test_ps_while_instances_come_and_go(make_node: MakeNode, root: Path) -> None:
    """A list is a list at any time, and an instance at work is never shown as lost."""
    node = make_node()
    stop = threading.Event()
    shown: Counter[tuple[str, str | None]] = Counter()

    def look() -> None:
        with Node(root) as mine:
            while not stop.is_set():
                for row in mine.list():
                    shown[row.state, row.end and row.end.reason] += 1
                mine.stats()

    with ThreadPoolExecutor(2) as threads:
        looking = [threads.submit(look) for _ in range(2)]
        end = time.monotonic() + 4
        try:
            while time.monotonic() < end:
                uuid = start(node, shell=FOREVER, veth=True)
                node.pause(uuid)
                node.resume(uuid)
                node.stop(uuid)
                node.clean(uuid)
                node.undefine(uuid)
                with pytest.raises(UnknownInstanceError):
                    node.get(uuid)
        finally:
            stop.set()
        for each in looking:
            each.result(scale.LONG_S)
    assert {state for state, _ in shown} <= {"DEFINED", "CONFIGURED", "RUNNING", "PAUSED"}
    assert {reason for _, reason in shown} <= {None, "stopped"}
    assert shown.total() > 20
