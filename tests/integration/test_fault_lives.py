"""Random lives of an instance on this machine: states, processes and limits are what they must be.

The same machine as tests/unit/runtime/test_lifecycle_machine.py, which has a host in memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import invariants
import pytest
import scale
from aftermath import app
from lifecycle import WITH_SANDBOX, Lifecycle, run_for
from nodes import make_document, remove_node, until

from nativert.fdu.states import State
from nativert.isolation import process
from nativert.runtime.node import Node
from nativert.runtime.protocols import Reporter

pytestmark = [pytest.mark.root, pytest.mark.netns]

STEPS = int(os.environ.get("NATIVERT_STEPS") or scale.count(500, least=50))


class ThisMachine:
    """A `World` with a node of its own, all of whose instances are one at a time."""

    descriptor = make_document(**app(veth=True))
    steps_can_fail = False
    fails_in = None

    def __init__(self, reporter: Reporter) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="lives-"))
        self.root = self.top / "node"
        self.node = Node(self.root, reporter=reporter)

    def close(self) -> None:
        self.node.close()
        remove_node(self.root)
        shutil.rmtree(self.top)

    def _kill(self, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            # In the v1 freezer it ends when it is thawed, which looking at it does.
            process.wait_end(pidfd, 0.2)
        finally:
            os.close(pidfd)

    def _noted(self, uuid: str) -> dict[str, object]:
        facts = invariants.noted(self.root, uuid)
        assert facts is not None
        return facts

    def kill_application(self, uuid: str) -> None:
        details = self._noted(uuid)["details"]
        assert isinstance(details, dict)
        self._kill(details["pid"])
        until(lambda: self.node.get(uuid).state == "CONFIGURED", what="the end is seen")

    def kill_init(self, uuid: str) -> None:
        pid = self._noted(uuid)["init_pid"]
        assert isinstance(pid, int)
        self._kill(pid)
        until(lambda: self.node.get(uuid).state == "DEFINED", what="the loss is seen")

    def lose_facts(self, uuid: str) -> bool:
        path = self.node.paths.instance_run(uuid)
        if not path.exists():
            return False
        shutil.rmtree(path)
        return True

    def agrees(self, state: State, uuid: str, memory_max: int) -> None:
        rows = self.node.list()
        broken = [
            *invariants.i1_command_kept(rows[0].state if rows else "UNDEFINED", [state.value], ""),
            *invariants.i3_truthful(self.root, rows),
            *invariants.i4_one_copy(self.root),
            *invariants.i5_states(rows),
        ]
        if state is State.UNDEFINED:
            broken += [f"{uuid} is served" for served in invariants.inits(self.root).values()]
        assert not broken
        if state in WITH_SANDBOX:
            cgroup = self.node.context.driver.open(f"i-{uuid}")
            assert cgroup.read().memory_max == memory_max

    def edges(self, uuid: str) -> list[str]:
        """Return which of the events of an instance do not lead on from each other."""
        self.node.context.store.flush()
        told = [e for e in self.node.events(limit=10_000) if e.instance == uuid]
        return invariants.i5_edges(told)


class OnThisMachine(Lifecycle):
    world: ThisMachine
    make_world = staticmethod(ThisMachine)

    def teardown(self) -> None:
        broken = self.world.edges(self.uuid)
        super().teardown()
        assert not broken


@pytest.mark.timeout(max(600, 2 * STEPS))
def test_random_lives() -> None:
    assert run_for(OnThisMachine, steps=STEPS, examples=5) >= STEPS
