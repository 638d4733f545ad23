"""Where the cases of the fault campaign are played: a node with a heartbeat, and a harness."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import invariants
import scale
from aftermath import live_on
from agents import Agent, serving
from fault_cases import (
    OPERATIONS,
    OUTSIDE,
    SUPERVISED,
    Case,
    Operation,
    done,
    prepare,
)
from nodes import driver_of, make_descriptor, remove_node, until

from nativert.agent.client import LostError
from nativert.errors import NativertError
from nativert.isolation.cgroups.driver import LAUNCHER
from nativert.runtime.failpoints import LAUNCHER as LAUNCHER_POINTS
from nativert.runtime.node import Node
from nativert.store.paths import Paths

# How long a process that was stopped stands still.
_STILL_S = 0.2
_DEADLINE_S = 60.0
_FAILED = 3
_COMMAND = f"""
import sys
from pathlib import Path
sys.path[:] = {{path!r}}
from fault_cases import OPERATIONS
from nativert.errors import NativertError
from nativert.launcher.failpoints import UnexpectedError
from nativert.runtime.node import Node
from nativert.store.paths import Paths
root, name, ref = sys.argv[1:]
try:
    with Node(Path(root)) as node:
        OPERATIONS[name].act(node, ref)
except (NativertError, OSError, UnexpectedError) as e:
    print(repr(e), file=sys.stderr)
    sys.exit({_FAILED})
"""


class Strike(NamedTuple):
    """What came of the fault: what the command said, and whether its writer was killed."""

    said: str
    killed: bool


class Field:
    """A node under *root* with an instance that is not to be disturbed."""

    def __init__(self, root: Path, node: Node) -> None:
        self.root = root
        self.node = node
        self.log = root.parent / "command.log"
        beat = node.define(make_descriptor(name="beat", shell=invariants.HEARTBEAT, veth=True))
        self.beat = beat.instance
        node.configure(self.beat)
        node.run(self.beat)
        self.heartbeat = invariants.Heartbeat(node, self.beat)
        until(lambda: not self.heartbeat.broken(), what="the heartbeat counts")
        self.before = self.footprint()

    def footprint(self) -> Counter[str]:
        """Return what the node has on the host; the heartbeat's own processes vary."""
        found = invariants.footprint(self.root)
        found[f"processes in i-{self.beat}"] = 1
        # Short-lived children of the launcher's; who watches, and what was written.
        for name in (f"processes in {LAUNCHER}", "processes in init"):
            found.pop(name, None)
        return found

    def play(self, case: Case) -> list[str]:
        """Play one case; return the invariants that it broke."""
        operation = OPERATIONS.get(case.operation) or SUPERVISED[case.operation]
        cursor = self.node.latest_event()
        ref = prepare(self.node, operation)
        self.node.context.store.flush()
        records = invariants.records(self.root)
        try:
            with ExitStack() as held:
                strike = self._strike(case, operation, ref, held)
                broken = self._look(case, operation, ref, strike, records, cursor)
            broken += self._live_on(ref)
        except Exception as e:
            broken = [f"harness: {type(e).__name__}: {e}"]
        # Behind the last step nothing is left that could fail: what fails there is as if killed.
        collected = case.action.endswith("kill") or case.point == "undefine.stored"
        broken += self._clear(collected=collected)
        return broken

    # -- the fault ---------------------------------------------------------------------

    def _strike(self, case: Case, operation: Operation, ref: str, held: ExitStack) -> Strike:
        if case.process == "agent":
            return self._strike_agent(case, operation, ref, held)
        if operation.upset is not None:
            operation.upset(self.root, ref)
        if case.point in LAUNCHER_POINTS:
            return self._strike_new_launcher(case, ref)
        outside = case.process != "command"
        action = "stop" if outside else case.action
        command = self._command(case, ref, action)
        if action not in ("stop", "stop-kill"):
            return _outcome(command)
        self._stopped(command)
        # Questions are answered beside an operation that stands still.
        assert self.node.list()
        if outside:
            self._upset_from_outside(case, ref, command)
        elif action == "stop":
            time.sleep(_STILL_S)
            command.send_signal(signal.SIGCONT)
        else:
            command.kill()
        return _outcome(command)

    def _command(self, case: Case, ref: str, action: str) -> subprocess.Popen[bytes]:
        armed = f"{case.point}={_armed(action)}"
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _COMMAND.format(path=sys.path),
                    str(self.root),
                    case.operation,
                    ref,
                ],
                env=os.environ | {"NATIVERT_FAILPOINTS": armed},
                stderr=log,
            )

    def _upset_from_outside(self, case: Case, ref: str, command: subprocess.Popen[bytes]) -> None:
        pids = (
            self._launchers()
            if case.process == "launcher"
            else [pid for pid, uuid in invariants.inits(self.root).items() if uuid == ref]
        )
        for pid in pids:
            _signal(pid, signal.SIGKILL if case.action == "kill" else signal.SIGSTOP)
        command.send_signal(signal.SIGCONT)
        if case.action == "stop":
            time.sleep(_STILL_S)
            for pid in pids:
                _signal(pid, signal.SIGCONT)

    def _launchers(self) -> list[int]:
        return list(driver_of(self.root).open(LAUNCHER).pids())

    def _strike_new_launcher(self, case: Case, ref: str) -> Strike:
        for pid in self._launchers():
            _signal(pid, signal.SIGKILL)
        until(lambda: not self._launchers(), what="no launcher")
        command = self._command(case, ref, case.action)
        if case.action.startswith("stop"):
            # Each launcher that the command starts in its turn stands still there.
            until(
                lambda: self._moved(case) and command.poll() is not None,
                what=f"the command ends: {self.log.read_text()}",
                deadline_s=scale.seconds(_DEADLINE_S),
            )
        # Not the command that was killed: what it says counts.
        return _outcome(command)

    def _moved(self, case: Case) -> bool:
        pid = _stopped_launcher(self.root)
        if pid is not None:
            time.sleep(_STILL_S)
            _signal(pid, signal.SIGCONT if case.action == "stop" else signal.SIGKILL)
        return pid is None

    def _strike_agent(self, case: Case, operation: Operation, ref: str, held: ExitStack) -> Strike:
        env = {"NATIVERT_FAILPOINTS": f"{case.point}={_armed(case.action)}"}
        agent = held.enter_context(_agent(self.root, env=env))
        if operation.upset is not None:
            operation.upset(self.root, ref)
        dies = case.action.endswith("kill")
        stops = case.action.startswith("stop")
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(_ask, agent, operation, ref)
            if stops:
                self._stopped(agent.process)
                assert self.node.list()
                time.sleep(_STILL_S)
                agent.process.send_signal(signal.SIGKILL if dies else signal.SIGCONT)
            if dies:
                assert agent.process.wait(scale.seconds(_DEADLINE_S)) == -signal.SIGKILL
            said = asked.result(scale.seconds(_DEADLINE_S))
        if dies:
            held.enter_context(_agent(self.root))
        if operation.act is None:
            until(
                lambda: done(self.node, self.root, operation, ref),
                what="supervision gets there",
                deadline_s=scale.LONG_S,
            )
        # Whoever comes after tells what its writer did not: no event is missing.
        return Strike(said, False)

    @staticmethod
    def _stopped(process: subprocess.Popen[bytes]) -> None:
        def ask() -> bool:
            assert process.poll() is None, f"ended with {process.returncode}: it was not passed"
            return _state_of(process.pid) == "T"

        until(ask, what="it stands still at its point", deadline_s=scale.LONG_S)

    # -- what holds after it -----------------------------------------------------------

    def _look(
        self,
        case: Case,
        operation: Operation,
        ref: str,
        strike: Strike,
        records: dict[str, invariants.Record],
        cursor: int,
    ) -> list[str]:
        if case.point == "stop.wished" and strike.said != "succeeded":
            # The signal is on its way: the application may end between two looks.
            until(lambda: not self._runs(), what="it ends", deadline_s=scale.LONG_S)
        rows = self.node.list()
        found = {row.name: row for row in rows}.get("case")
        state = "" if found is None else found.state
        accepted = operation.after if strike.said == "succeeded" else operation.between
        if case.process == "init" and case.action in OUTSIDE[:1]:
            accepted = (*accepted, "DEFINED")
        may_go = [ref] if "" in accepted else []
        broken = invariants.i1_command_kept(state, accepted, strike.said)
        after = invariants.records(self.root)
        broken += invariants.i1_records_kept(records, after, may_go=may_go)
        broken += invariants.i3_truthful(self.root, rows)
        broken += invariants.i4_one_copy(self.root)
        broken += invariants.i5_states(rows)
        self.node.context.store.flush()
        who = ref if found is None else found.instance
        told = [e for e in self.node.events(cursor, limit=10_000) if e.instance == who]
        broken += invariants.i5_edges(told, lost=int(strike.killed))
        return broken

    def _runs(self) -> bool:
        state = {row.name: row.state for row in self.node.list()}.get("case")
        # Killed in the v1 freezer it ends when the next operation thaws it.
        dies_frozen = driver_of(self.root).mode != "v1"
        return state == "RUNNING" or (state == "PAUSED" and dies_frozen)

    def _live_on(self, ref: str) -> list[str]:
        try:
            if any(row.name == "case" for row in self.node.list()):
                live_on(self.node, self.node.get("case").instance)
        except (NativertError, AssertionError) as e:
            return [f"I1 it cannot live on: {e}"]
        return []

    def _clear(self, *, collected: bool) -> list[str]:
        for row in self.node.list():
            if row.name == "case":
                self.node.remove(row.instance, force=True)
        if collected:
            self.node.gc()  # What stands half-way without a record.
        end = time.monotonic() + scale.LONG_S
        # A link is deleted in the background.
        while (now := self.footprint()) != self.before and time.monotonic() < end:
            time.sleep(0.02)
        broken = invariants.i2_nothing_left(self.before, now)
        if broken:
            self.node.gc()
            self.before = self.footprint()
        return broken + self.heartbeat.broken()


@contextmanager
def open_field(root: Path) -> Iterator[Field]:
    """A field under *root*, which is removed afterwards with all that is its."""
    try:
        with Node(root) as node:
            yield Field(root, node)
    finally:
        remove_node(root)


@contextmanager
def _agent(root: Path, env: dict[str, str] | None = None) -> Iterator[Agent]:
    with serving(root, env=env, config="[supervision]\nreconcile_s = 0.3\n") as agent:
        yield agent


def _ask(agent: Agent, operation: Operation, ref: str) -> str:
    if operation.act is None:
        return "succeeded"
    try:
        with agent.client() as client:
            client.direct = _alone  # type: ignore[method-assign]
            operation.act(client, ref)
    except LostError:
        return "was killed"
    except NativertError:
        return "failed"
    return "succeeded"


def _alone() -> NoReturn:
    raise LostError("the agent is gone")


def _armed(action: str) -> str:
    return "stop" if action == "stop-kill" else action


def _outcome(command: subprocess.Popen[bytes]) -> Strike:
    code = command.wait(scale.seconds(_DEADLINE_S))
    if code == -signal.SIGKILL:
        return Strike("was killed", True)
    assert code in (0, _FAILED), f"the command ended with {code}"
    return Strike("failed" if code else "succeeded", False)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _stopped_launcher(root: Path) -> int | None:
    """Return the pid of the launcher that stands still, wherever its cgroup is by now."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _state_of(int(entry.name)) == "T":
            opened = invariants.open_files(int(entry.name))
            if f"{Paths(root).run}/launcher.lock" in opened:
                return int(entry.name)
    return None
