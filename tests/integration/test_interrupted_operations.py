"""Operations that die or fail at any step: the next command tells the truth."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import scale
from aftermath import (
    MIB,
    OPERATIONS,
    assert_nothing_left,
    driver,
    facts,
    live_on,
    operate_in_a_child,
    prepare,
)
from nodes import MakeNode

from nativert.errors import NativertError
from nativert.isolation import process
from nativert.runtime import failpoints

pytestmark = [pytest.mark.root, pytest.mark.netns]

STEPS_OF = {"end": "stop", "release": "clean"}
# Where the operation had come too far to be taken back, or not far enough to be seen.
SETTLED_AFTER_KILL = {
    "define.stored": "DEFINED",
    "run.started": "RUNNING",
    "run.noted": "RUNNING",
    "stop.wished": "CONFIGURED",
    "stop.ended": "CONFIGURED",
    "end.stored": "CONFIGURED",
    "pause.frozen": "PAUSED",
    "resume.thawed": "RUNNING",
    "clean.intent": "DEFINED",
    "clean.stored": "DEFINED",
    "release.network": "DEFINED",
    "release.init": "DEFINED",
    "release.cgroup": "DEFINED",
    "undefine.stored": "",
}
SETTLED_AFTER_FAILURE = {
    "stop.wished": "CONFIGURED",
    "stop.ended": "CONFIGURED",
    "end.stored": "CONFIGURED",
    "clean.stored": "DEFINED",
    "release.network": "DEFINED",
    "release.init": "DEFINED",
    "release.cgroup": "DEFINED",
}
# Behind the last step nothing is left that could fail.
ONLY_KILLED = {"define.stored", "undefine.stored"}


def operation_of(point: str) -> str:
    word = point.partition(".")[0]
    return STEPS_OF.get(word, word)


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

    if point == "stop.wished":
        node.wait(uuid, timeout_s=scale.LONG_S)  # Its signal had been sent.
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
        # PAUSED is noted nowhere: the kernel says it.
        assert noted["state"] == ("RUNNING" if state == "PAUSED" else state)
        assert process.alive(noted["init_pid"], noted["init_start"])
    if state == "RUNNING":
        assert found["app"].pid is not None
        assert process.start_time(found["app"].pid)
        cgroup = driver(root).open(noted["cgroup"])
        assert cgroup.read().memory_max == 64 * MIB
        assert node.stats([uuid])[0].memory_max == 64 * MIB
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
    if point == "stop.wished":
        node.wait(uuid, timeout_s=scale.LONG_S)  # Its signal had been sent.
    state = SETTLED_AFTER_FAILURE.get(point, before)
    assert node.get(uuid).state == state
    if state == "DEFINED":
        assert_nothing_left(node, root, uuid)
    if state == "RUNNING":
        cgroup = driver(root).open(facts(root, uuid)["cgroup"])
        assert cgroup.read().memory_max == 64 * MIB
        assert not cgroup.frozen()
    live_on(node, uuid)
