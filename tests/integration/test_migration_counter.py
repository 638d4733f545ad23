"""A counter that is moved there and back again and again: no number is repeated or skipped.

20 moves, or as many as NATIVERT_MIGRATION_MOVES says.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from pathlib import Path

import pytest
import scale
from migration_field import COUNTER
from movers import Served, Wire, id_of
from nodes import MakeNode, make_descriptor, start, until

from nativert.runtime.migration.source import Mover

pytestmark = [pytest.mark.root, pytest.mark.netns]

MOVES = int(os.environ.get("NATIVERT_MIGRATION_MOVES", str(scale.count(20, least=4))))
BALLAST = 4 << 20
BUSY = "while :; do :; done"


class Watch:
    """Notes when the file of the numbers grows; gaps are in seconds."""

    def __init__(self, numbers: Path) -> None:
        self._numbers = numbers
        self._ended = threading.Event()
        self.longest_s = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        size, at = 0, time.monotonic()
        while not self._ended.wait(0.002):
            now = time.monotonic()
            if (found := self._numbers.stat().st_size) != size:
                size, at = found, now
            self.longest_s = max(self.longest_s, now - at)

    def close(self) -> float:
        self._ended.set()
        self._thread.join()
        return self.longest_s


@pytest.mark.timeout(scale.seconds(300 + 15 * MOVES))
def test_a_counter_is_moved_there_and_back(make_node: MakeNode, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    witness.mkdir(mode=0o755)
    numbers = witness / "numbers"
    numbers.touch()
    numbers.chmod(0o666)
    roots = (tmp_path / "a", tmp_path / "b")
    nodes = [make_node(root) for root in roots]
    ids, wire = [id_of(root) for root in roots], Wire(*roots)
    served = [Served(node) for node in nodes]
    mounts = [{"source": str(witness), "target": "/witness", "read_only": False}]
    load = (
        nodes[0]
        .define(make_descriptor(name="load", shell=BUSY, native={"cpu": {"max": 0.5}}))
        .instance
    )
    nodes[0].configure(load)
    nodes[0].run(load)
    uuid = start(nodes[0], name="counter", python=COUNTER, veth=True, native={"mounts": mounts})
    data = nodes[0].paths.instance_lib(uuid) / "data"
    (data / "ballast").write_bytes(os.urandom(BALLAST))
    gaps = []
    for number in range(MOVES):
        here, there = number % 2, 1 - number % 2
        size = numbers.stat().st_size
        until(lambda: numbers.stat().st_size > size, what="a number")  # noqa: B023
        watch = Watch(numbers)
        Mover(nodes[here], wire).migrate(uuid, ids[there])
        size = numbers.stat().st_size
        until(lambda: numbers.stat().st_size > size, what="a number after it")  # noqa: B023
        gaps.append(watch.close())
    at = nodes[MOVES % 2]
    assert at.get(uuid).state == "RUNNING"
    at.stop(uuid)
    for one in served:
        one.close()
    lines = numbers.read_text().splitlines()
    assert lines == [str(n + 1) for n in range(len(lines))]
    assert len(lines) > MOVES
    ordered = sorted(gaps)
    p95_s = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    said = f"gap p50 {statistics.median(gaps):.3f} s, p95 {p95_s:.3f} s, {MOVES} moves"
    Path(os.environ.get("NATIVERT_MIGRATION_SAID", tmp_path / "said")).write_text(said)
    assert statistics.median(gaps) < scale.seconds(2), said
