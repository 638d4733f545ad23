"""What a process keeps between operations never hides what has happened meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from aftermath import FOREVER, facts, kill
from nodes import MakeNode, cgroup, ended, log_text, make_descriptor, start, until

from nativert.errors import NativertError, TransitionError, UnknownInstanceError
from nativert.runtime.node import Node
from nativert.store.paths import Paths

pytestmark = pytest.mark.root


@pytest.fixture
def two(make_node: MakeNode) -> tuple[Node, Node]:
    """The same node, opened as by two processes."""
    return make_node(), make_node()


def test_each_sees_what_the_other_has_done(two: tuple[Node, Node]) -> None:
    one, other = two
    uuid = start(one, shell=FOREVER)
    for _ in range(3):
        assert one.pause(uuid).state == "PAUSED"
        with pytest.raises(TransitionError):
            other.pause(uuid)
        assert other.resume(uuid).state == "RUNNING"
        with pytest.raises(TransitionError):
            one.resume(uuid)
        assert other.scale(uuid, {"pids_max": 50}).state == "RUNNING"
    assert other.stop(uuid).state == "CONFIGURED"
    assert one.run(uuid).state == "RUNNING"
    assert other.stop(uuid).state == "CONFIGURED"
    assert one.clean(uuid).state == "DEFINED"
    with pytest.raises(TransitionError):
        other.run(uuid)


def test_a_stop_is_seen_by_others_before_its_end_is_stored(two: tuple[Node, Node]) -> None:
    one, other = two
    uuid = start(one, shell=FOREVER)
    for run in (1, 2):
        shown = one.stop(uuid)
        # The store has it a moment later; what other processes look at tells it before.
        seen = other.get(uuid)
        assert (seen.state, seen.end) == ("CONFIGURED", shown.end)
        assert ended(seen).signal == "SIGTERM"
        assert other.run(uuid).state == "RUNNING"
        kinds = [event.kind for event in other.events() if event.kind == "ended"]
        assert len(kinds) == run
    assert one.stop(uuid).state == "CONFIGURED"
    assert [event.kind for event in one.events()].count("ended") == 3
    assert one.clean(uuid).end == one.get(uuid).end is not None


def test_a_stop_by_a_process_that_is_killed_after_it_is_told_once(node: Node, root: Path) -> None:
    uuid = start(node, shell=FOREVER)
    code = (
        "import os, sys; from pathlib import Path; from nativert.runtime.node import Node;"
        " Node(root=Path(sys.argv[1])).stop(sys.argv[2]); os._exit(0)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, root, uuid], check=True)
    assert node.get(uuid).state == "CONFIGURED"
    assert node.run(uuid).state == "RUNNING"
    (event,) = [event for event in node.events() if event.kind == "ended"]
    assert event.data["end"]["signal"] == "SIGTERM"
    assert event.data["end"]["reason"] == "stopped"


def test_an_end_between_two_operations_is_seen(node: Node) -> None:
    uuid = start(node, shell="trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")
    until(lambda: log_text(node, uuid) == "up\n", what="it has its handler")
    node.pause(uuid)
    node.resume(uuid)
    node.kill(uuid, signal.SIGTERM)
    until(lambda: node.get(uuid).state == "CONFIGURED")
    with pytest.raises(TransitionError):
        node.pause(uuid)
    assert ended(node.get(uuid)).exit_code == 7


def test_an_end_that_nobody_looked_at_refuses_the_next_operation(node: Node, root: Path) -> None:
    uuid = start(node, shell=FOREVER)
    node.pause(uuid)
    node.resume(uuid)
    pid = node.get(uuid).pid
    assert pid is not None
    kill(pid)
    until((Paths(root).instance_run(uuid) / "exit.json").exists)
    with pytest.raises(TransitionError, match="CONFIGURED"):
        node.pause(uuid)


def test_a_lost_init_is_seen(node: Node, root: Path) -> None:
    uuid = start(node, shell=FOREVER)
    node.pause(uuid)
    node.resume(uuid)
    kill(facts(root, uuid)["init_pid"])
    with pytest.raises(TransitionError, match="DEFINED"):
        node.pause(uuid)
    assert ended(node.get(uuid)).reason == "init-lost"


def test_an_instance_that_another_has_removed_is_unknown(two: tuple[Node, Node]) -> None:
    one, other = two
    uuid = start(one, shell=FOREVER)
    one.pause(uuid)
    other.remove(uuid, force=True)
    with pytest.raises(UnknownInstanceError):
        one.resume(uuid)
    # A new one of the same name is another one.
    again = other.define(make_descriptor(shell=FOREVER))
    assert one.configure(again.name).instance == again.instance != uuid


def test_a_lock_file_that_was_taken_away_is_made_again(two: tuple[Node, Node], root: Path) -> None:
    one, other = two
    uuid = start(one, shell=FOREVER)
    one.pause(uuid)
    Paths(root).instance_lock(uuid).unlink()
    assert other.resume(uuid).state == "RUNNING"
    with pytest.raises(TransitionError):
        one.resume(uuid)


def test_what_is_frozen_from_outside_is_paused(node: Node, make_node: MakeNode) -> None:
    uuid = start(node, shell=FOREVER)
    cgroup(node, uuid).freeze(5.0)
    other = make_node()
    assert other.get(uuid).state == "PAUSED"
    assert other.resume(uuid).state == "RUNNING"
    assert not cgroup(node, uuid).frozen()


def test_after_a_failure_nothing_is_taken_for_granted(node: Node) -> None:
    uuid = start(node, shell=FOREVER)
    node.pause(uuid)
    with pytest.raises(TransitionError):
        node.clean(uuid)
    assert node.resume(uuid).state == "RUNNING"


def test_threads_of_two_nodes_take_each_edge_once(two: tuple[Node, Node]) -> None:
    uuid = start(two[0], shell=FOREVER)
    done: list[str] = []
    refused: list[NativertError] = []

    def switch(node: Node) -> None:
        for _ in range(20):
            for operation in (node.pause, node.resume):
                try:
                    done.append(operation(uuid).state)
                except TransitionError as e:
                    refused.append(e)

    threads = [threading.Thread(target=switch, args=(two[n % 2],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == 160
    # Whatever the order was, the two edges were taken in turn.
    assert abs(done.count("PAUSED") - done.count("RUNNING")) <= 1
    assert two[0].get(uuid).state == (
        "PAUSED" if done.count("PAUSED") > done.count("RUNNING") else "RUNNING"
    )
