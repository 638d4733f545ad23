"""Hostile or broken applications: only their own instance suffers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import scale
from nodes import log_text, run_inside, start, until, until_logged

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

# Writes a line every 10 ms with the longest gap so far between two of them.
NEIGHBOUR = """
import time
last, worst, n = time.monotonic(), 0.0, 0
while True:
    time.sleep(0.01)
    now = time.monotonic()
    worst, last, n = max(worst, now - last), now, n + 1
    print(n, round(worst, 3))
"""
FORK_BOMB = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("boom")
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


@contextmanager
def undisturbed_neighbour(node: Node) -> Iterator[None]:
    """Another instance goes on meanwhile: its lines come, complete and in order."""
    neighbour = start(node, name="neighbour", python=NEIGHBOUR)
    until_logged(node, neighbour, "1 ")
    before = len(log_text(node, neighbour).splitlines())
    yield
    until(lambda: len(log_text(node, neighbour).splitlines()) > before + 10)

    def answered_s() -> float:
        begun = time.monotonic()
        assert run_inside(node, neighbour, "echo", "here") == (0, "here\n")
        return time.monotonic() - begun

    assert scale.quickest(answered_s, below_s=scale.seconds(2)) < scale.seconds(2)
    row = node.get(neighbour)
    assert (row.state, row.end, row.pids) == ("RUNNING", None, 1)
    lines = [line.split() for line in log_text(node, neighbour).splitlines()]
    assert [int(line[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert float(lines[-1][1]) < 2


def test_fork_bomb(node: Node) -> None:
    native = {"pids": {"max": 40}, "cpu": {"max": 0.5}, "stop": {"grace": "200ms"}}
    with undisturbed_neighbour(node):
        bomb = start(node, name="bomb", python=FORK_BOMB, native=native)
        until(lambda: (node.stats([bomb])[0].pids or 0) >= 38, what="the bomb has gone off")
        assert (node.stats([bomb])[0].pids or 0) <= 40
    # One that does not end is an error, after 10 s.
    assert node.stop(bomb).state == "CONFIGURED"
    assert not node._context.driver.open(f"i-{bomb}").populated()
    node.clean(bomb)


def test_fork_bomb_removed_by_force(node: Node) -> None:
    native = {"pids": {"max": 40}, "cpu": {"max": 0.5}, "stop": {"grace": "1h"}}
    bomb = start(node, python=FORK_BOMB, native=native)
    until(lambda: (node.stats([bomb])[0].pids or 0) >= 38)
    # Long before the grace is over, which the test itself does not live to see.
    node.remove(bomb, force=True)
    assert node.list() == []


def test_memory_bomb(node: Node) -> None:
    grow = "data = []\nwhile True: data.append(bytearray(1 << 20))"
    with undisturbed_neighbour(node):
        native = {"memory": {"max": "48M", "swap": 0}}
        bomb = start(node, name="bomb", python=grow, native=native)
        end = node.wait(bomb, timeout_s=scale.LONG_S).end
    assert end is not None
    assert (end.reason, end.oom) == ("oom", True)


def test_memory_bomb_in_a_tmpfs_is_the_instances_own(node: Node) -> None:
    fill = "cat /dev/zero > /dev/shm/a & cat /dev/zero > /tmp/b & wait; echo waited; sleep 1000"
    native = {"memory": {"max": "32M", "swap": 0}}
    with undisturbed_neighbour(node):
        bomb = start(node, name="bomb", shell=fill, native=native)
        until(lambda: node.stats([bomb])[0].oom_kills or node.get(bomb).state == "CONFIGURED")
    node.remove(bomb, force=True)


def stored_bytes(directory: Path) -> int:
    """Return the size of all log files; one may be renamed between the list and the look."""
    total = 0
    for path in directory.iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_log_flood_is_capped_and_rotated(node: Node) -> None:
    native = {"logs": {"max_size": "64K", "files": 3}, "cpu": {"max": 0.5}}
    with undisturbed_neighbour(node):
        flood = start(
            node, name="flood", binary="/usr/bin/yes", args=["flooding " * 20], native=native
        )
        directory: Path = node._context.paths.instance_lib(flood) / "log"
        until(lambda: len(list(directory.iterdir())) == 3, what="two rotations")
        for _ in range(20):
            assert stored_bytes(directory) <= 3 * (64 << 10)
            time.sleep(0.01)
    assert node.get(flood).state == "RUNNING"
    assert "flooding" in log_text(node, flood)
    # By its stop signal, which it does not ignore.
    end = node.stop(flood).end
    assert end is not None
    assert (end.reason, end.signal) == ("stopped", "SIGTERM")


def test_a_line_without_an_end_is_capped_too(node: Node) -> None:
    native = {"logs": {"max_size": "256K", "files": 2}, "cpu": {"max": 0.5}}
    flood = start(node, binary="/bin/cat", args=["/dev/zero"], native=native)
    directory: Path = node._context.paths.instance_lib(flood) / "log"
    until(lambda: len(list(directory.iterdir())) == 2)
    time.sleep(0.1)
    assert stored_bytes(directory) <= 2 * (256 << 10)
    node.stop(flood)


def test_a_reader_that_never_comes_does_not_block_the_application(node: Node) -> None:
    """A follower that stops reading holds up neither the log nor the application."""
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; exit 3"
    app = start(node, shell=script)
    stuck = node.logs(app, follow=True)
    next(stuck)
    row = node.wait(app, timeout_s=scale.LONG_S)
    assert row.end is not None
    assert row.end.exit_code == 3
    rest = sum(1 for _ in stuck)
    assert rest + 1 == 20000
