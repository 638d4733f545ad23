"""Limits that are changed: measured, kept over runs, and all or none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from nodes import cgroup, start, until, until_logged

from nativert.errors import Code, NativertError
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

BURN = "import itertools\nfor _ in itertools.count(): pass"
SLEEP = "exec sleep 1000"
MIB = 1 << 20


def bounded_by(node: Node, ref: str, limit: float, window_s: float = 0.4) -> bool:
    """Tell whether the cores that a busy instance gets over a window are those of its limit.

    Less than that is right only as far as the host has no more to give: who could have had more
    is throttled for the rest of the time.
    """
    before, since = node.stats([ref])[0], time.monotonic()
    time.sleep(window_s)
    after, now = node.stats([ref])[0], time.monotonic()
    assert None not in (before.cpu_ns, before.throttled_ns, after.cpu_ns, after.throttled_ns)
    used = (after.cpu_ns - before.cpu_ns) / 1e9 / (now - since)  # type: ignore[operator]
    held = (after.throttled_ns - before.throttled_ns) / 1e9 / (now - since)  # type: ignore[operator]
    least = 0.7 * limit * min(1.0, held / (1 - limit))
    return held > 0 and least <= used < 1.3 * limit


def test_the_measured_share_follows_the_cpu_limit(node: Node) -> None:
    # So little that a busy host has it left.
    app = start(node, python=BURN, native={"cpu": {"max": 0.2}})
    until(lambda: bounded_by(node, app, 0.2), what="0.2 cores")
    node.scale(app, {"cpu_max": 0.1})
    until(lambda: bounded_by(node, app, 0.1), what="0.1 cores")
    figures = node.stats([app])[0]
    assert figures.throttled_ns


def test_scale_sets_and_unsets_and_keeps_the_rest(node: Node) -> None:
    native = {"cpu": {"max": 1.5, "weight": 200}, "memory": {"max": "64M"}, "pids": {"max": 20}}
    app = start(node, shell=SLEEP, native=native)
    before = cgroup(node, app).read()
    assert (before.cpu_max, before.memory_max, before.pids_max) == (1.5, 64 * MIB, 20)
    node.scale(app, {"cpu_max": 0.5, "pids_max": 30, "cpuset": "0"})
    after = cgroup(node, app).read()
    assert (after.cpu_max, after.pids_max, after.cpuset) == (0.5, 30, "0")
    assert (after.memory_max, after.cpu_weight) == (64 * MIB, before.cpu_weight)
    node.scale(app, {"cpu_max": None, "memory_max": None})
    freed = cgroup(node, app).read()
    assert (freed.cpu_max, freed.memory_max, freed.pids_max) == (None, None, 30)


def test_limits_of_a_scale_outlive_stop_and_clean(node: Node) -> None:
    app = start(node, shell=SLEEP, native={"pids": {"max": 20}, "memory": {"max": "64M"}})
    node.scale(app, {"pids_max": 33, "memory_max": None})
    node.stop(app)
    node.run(app)
    assert cgroup(node, app).read().pids_max == 33
    node.stop(app)
    node.clean(app)
    node.configure(app)
    limits = cgroup(node, app).read()
    assert (limits.pids_max, limits.memory_max) == (33, None)
    native: Any = node.inspect(app)["native"]
    assert native["limits"]["pids_max"] == 33


def test_scale_below_the_working_set_is_refused(node: Node) -> None:
    hold = "data = bytearray(40 << 20); print('holding'); import time; time.sleep(1000)"
    app = start(node, python=hold, native={"memory": {"max": "100M"}, "pids": {"max": 20}})
    until_logged(node, app, "holding")
    with pytest.raises(NativertError, match="are in use") as refused:
        node.scale(app, {"memory_max": 16 * MIB, "pids_max": 5})
    assert refused.value.code is Code.SCALE
    assert "--force" in refused.value.hint
    limits = cgroup(node, app).read()
    assert (limits.memory_max, limits.pids_max) == (100 * MIB, 20)
    assert node.get(app).state == "RUNNING"


@pytest.mark.cgroup_v1
def test_scale_is_all_or_none_when_the_kernel_refuses_one(node: Node) -> None:
    # On v1 the kernel itself refuses a memory limit that it cannot reclaim down to.
    if Path("/proc/swaps").read_text().count("\n") > 1:
        pytest.skip("with swap the kernel can reclaim")
    hold = "data = bytearray(40 << 20); print('holding'); import time; time.sleep(1000)"
    native = {"memory": {"max": "100M"}, "pids": {"max": 20}, "cpu": {"max": 1}}
    app = start(node, python=hold, native=native)
    until_logged(node, app, "holding")
    before = cgroup(node, app).read()
    change = {"memory_max": 16 * MIB, "pids_max": 5, "cpu_max": 0.5, "cpuset": "0"}
    with pytest.raises(NativertError, match="scale") as refused:
        node.scale(app, change, force=True)
    assert refused.value.code is Code.SCALE
    assert cgroup(node, app).read() == before
    row = node.get(app)
    assert (row.state, row.end) == ("RUNNING", None)
    # What was refused is not what the next configure asks for.
    node.stop(app)
    node.clean(app)
    node.configure(app)
    assert cgroup(node, app).read() == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"cpuset": "4095"}, Code.UNENFORCEABLE),
        ({"nonsense": 1}, Code.USAGE),
        ({"pids_max": "many"}, Code.USAGE),
        ({"io": [{"device": "999:99", "rbps": 1 << 20}]}, Code.UNENFORCEABLE),
    ],
)
def test_scale_refuses_what_is_no_limit(node: Node, change: dict[str, object], code: Code) -> None:
    app = start(node, shell=SLEEP, native={"pids": {"max": 20}})
    before = cgroup(node, app).read()
    with pytest.raises(NativertError) as refused:
        node.scale(app, change | {"memory_high": None})
    assert refused.value.code is code
    assert cgroup(node, app).read() == before
    assert node.get(app).state == "RUNNING"
