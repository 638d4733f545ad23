"""Many lifecycles: nothing is left of them, on the host or in this process.

NATIVERT_LIFECYCLES says how many, 1000 unless told.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import census
import pytest
import scale
from nodes import make_descriptor, tag_of, until

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600)]

LIFECYCLES = int(os.environ.get("NATIVERT_LIFECYCLES") or scale.count(1000))
# Of each, in turn: how it ends.
ENDS = ("exits", "stopped", "paused and forced", "scaled", "killed")


def descriptors() -> set[str]:
    """What this process has open; reading them is one more, which is left out."""
    here = Path("/proc/self/fd")
    found = set()
    for entry in here.iterdir():
        try:
            found.add(f"{entry.name} {os.readlink(entry)}")
        except FileNotFoundError:
            continue
    return found


def one_life(node: Node, number: int) -> None:
    way = ENDS[number % len(ENDS)]
    script = "exit 3" if way == "exits" else "exec sleep 1000"
    native = {"pids": {"max": 20}, "memory": {"max": "64M"}, "network": {"ports": ["21301:80"]}}
    app = node.define(make_descriptor(shell=script, veth=True, native=native)).instance
    node.configure(app)
    node.run(app)
    if way == "exits":
        end = node.wait(app, timeout_s=scale.LONG_S).end
        assert end is not None
        assert end.exit_code == 3
    elif way == "paused and forced":
        node.pause(app)
        node.remove(app, force=True)
        return
    elif way == "scaled":
        node.scale(app, {"pids_max": 30, "memory_max": 80 << 20})
        node.stop(app)
    elif way == "killed":
        node.kill(app, 9)
        assert node.wait(app, timeout_s=scale.LONG_S).state == "CONFIGURED"
    else:
        node.stop(app)
    node.remove(app)


def test_lifecycles_leave_nothing(node: Node, root: Path) -> None:
    # Without any instance the launcher would leave after some seconds.
    keeper = node.define(make_descriptor(name="keeper", native={"network": {"mode": "none"}}))
    node.configure(keeper.instance)
    # The first one makes the bridge.
    for number in range(len(ENDS)):
        one_life(node, number)
    gc.collect()
    tag = tag_of(root)
    until(lambda: not [line for line in census.take() if f"link nv{tag}" in line])
    before = {line for line in census.take() if tag in line or str(root) in line}
    open_before = descriptors()
    launcher = node._context.driver.open("launcher").pids()
    assert len(launcher) == 1
    launcher_fds = Path(f"/proc/{launcher[0]}/fd")
    launcher_before = len(list(launcher_fds.iterdir()))
    inits = node._context.driver.open("init").pids()
    assert len(inits) == 1
    places = [
        root / place for place in ("run/nativert/i", "run/nativert/locks", "var/lib/nativert/i")
    ]
    kept = [sorted(place.iterdir()) for place in places]

    for number in range(LIFECYCLES):
        one_life(node, number)

    gc.collect()
    assert [row.name for row in node.list()] == ["keeper"]
    assert sorted(descriptors() - open_before) == []
    until(lambda: len(list(launcher_fds.iterdir())) <= launcher_before, what="its descriptors")
    until(lambda: node._context.driver.open("init").pids() == inits, what="no other init is left")
    # The last veths are deleted in the background.
    until(lambda: not [line for line in census.take() if f"link nv{tag}" in line])
    assert {line for line in census.take() if tag in line or str(root) in line} == before
    assert [sorted(place.iterdir()) for place in places] == kept
    node.remove(keeper.instance)
    assert node.list() == []
    assert [list(place.iterdir()) for place in places] == [[], [], []]
    assert node._context.claims.ports(node._context.identity.id) == {}
    found = {left.kind for left in node.gc()}
    assert found <= {"process", "network", "cgroup"}
    until(lambda: not [line for line in census.take() if tag in line])


def test_runs_of_one_instance_leave_nothing(node: Node) -> None:
    app = node.define(make_descriptor(shell="echo run; exit 0", veth=True)).instance
    node.configure(app)
    pid = node.inspect(app)["native"]["init_pid"]  # type: ignore[index]
    init_fds = Path(f"/proc/{pid}/fd")
    node.run(app)
    node.wait(app, timeout_s=scale.LONG_S)
    # What the store opens once, for the disk, it has by then.
    node.context.store.save().wait()
    here, there = len(descriptors()), len(list(init_fds.iterdir()))
    for _ in range(LIFECYCLES):
        node.run(app)
        node.wait(app, timeout_s=scale.LONG_S)
    gc.collect()
    # The first count may have one that was just being closed; what leaks is one for each run.
    assert len(descriptors()) <= here
    until(lambda: len(list(init_fds.iterdir())) <= there, what="descriptors of init")
    assert node._context.driver.open(f"i-{app}").pids() == []
