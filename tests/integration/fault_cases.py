"""Every case of the fault campaign: an operation, a point that it passes, who fails there, how.

The points are those that the operations really pass: each is carried out once and listened to.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import scale
from aftermath import MIB, app
from invariants import inits, noted
from nodes import driver_of, make_descriptor, until

from nativert.isolation import process
from nativert.runtime.facade import Facade
from nativert.runtime.failpoints import ACTIONS, LAUNCHER, passing
from nativert.runtime.node import Node
from nativert.runtime.supervision.supervisor import Supervisor

# Beside the actions of a failpoint: stopped, and killed before it goes on.
STOPPED_AND_KILLED = "stop-kill"
# What a signal from outside does to a process that has no points: it ends, or stands still.
OUTSIDE = ("kill", "stop")
RESTARTED = {"restart": {"policy": "always", "backoff": "100ms"}}
Upset = Callable[[Path, str], None]


class Operation(NamedTuple):
    """What is done to an instance that is in the state *before*.

    *after* has the states that an operation which succeeded may leave ("" for none), *between*
    those that one may leave which did not. *upset* is what happens to the instance before.
    """

    name: str
    before: str
    act: Callable[[Facade, str], object] | None
    after: tuple[str, ...]
    between: tuple[str, ...]
    upset: Upset | None = None
    native: Mapping[str, Any] = MappingProxyType({})


def _kill_and_wait(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert process.wait_end(pidfd, scale.LONG_S)
    finally:
        os.close(pidfd)


def _kill_application(root: Path, uuid: str) -> None:
    _kill_and_wait((noted(root, uuid) or {})["details"]["pid"])


def _kill_init(root: Path, uuid: str) -> None:
    _kill_and_wait((noted(root, uuid) or {})["init_pid"])


def _wipe_a_limit(root: Path, uuid: str) -> None:
    cgroup = driver_of(root).open(f"i-{uuid}")
    cgroup.apply(msgspec.structs.replace(cgroup.read(), memory_max=80 * MIB))


def _scale(node: Facade, ref: str) -> object:
    return node.scale(ref, {"memory_max": 96 * MIB})


ALL = ("DEFINED", "CONFIGURED", "RUNNING")
OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            "define",
            "",
            lambda node, ref: node.define(make_descriptor(**app()), name=ref),
            ("DEFINED",),
            ("", "DEFINED"),
        ),
        Operation("configure", "DEFINED", lambda n, r: n.configure(r), ALL[1:2], ALL[:2]),
        Operation("run", "CONFIGURED", lambda n, r: n.run(r), ALL[2:], ALL[1:]),
        Operation("stop", "RUNNING", lambda n, r: n.stop(r), ALL[1:2], ALL[1:]),
        Operation("restart", "RUNNING", lambda n, r: n.restart(r), ALL[2:], ALL[1:]),
        Operation("pause", "RUNNING", lambda n, r: n.pause(r), ("PAUSED",), ("RUNNING", "PAUSED")),
        Operation(
            "resume", "PAUSED", lambda n, r: n.resume(r), ("RUNNING",), ("RUNNING", "PAUSED")
        ),
        Operation("scale", "RUNNING", _scale, ALL[2:], ALL[2:]),
        Operation("clean", "CONFIGURED", lambda n, r: n.clean(r), ALL[:1], ALL[:2]),
        Operation("undefine", "DEFINED", lambda n, r: n.undefine(r), ("",), ("", "DEFINED")),
        Operation(
            "remove-running", "RUNNING", lambda n, r: n.remove(r, force=True), ("",), ("", *ALL)
        ),
        Operation(
            "remove-paused",
            "PAUSED",
            lambda n, r: n.remove(r, force=True),
            ("",),
            ("", *ALL, "PAUSED"),
        ),
        Operation(
            "notice-end", "RUNNING", lambda n, r: n.get(r), ALL[1:2], ALL[1:2], _kill_application
        ),
        Operation("notice-lost", "RUNNING", lambda n, r: n.get(r), ALL[:1], ALL[:1], _kill_init),
    )
}
# Nobody asks for these: the agent does them by itself, and gets there in the end.
SUPERVISED = {
    operation.name: operation
    for operation in (
        Operation("restart-ended", "RUNNING", None, ALL[2:], ALL[2:], _kill_application, RESTARTED),
        Operation("restart-lost", "RUNNING", None, ALL[2:], ALL[2:], _kill_init, RESTARTED),
        Operation("repair", "RUNNING", None, ALL[2:], ALL[2:], _wipe_a_limit),
    )
}


class Case(NamedTuple):
    """At *point* of *operation*, *process* (command, agent, launcher, init) fails by *action*."""

    process: str
    operation: str
    point: str
    action: str

    def __str__(self) -> str:
        return f"{self.process}:{self.operation}@{self.point}={self.action}"


class Passed(NamedTuple):
    """A point that an operation passes, and whether the instance has an init there."""

    point: str
    with_init: bool


class Attending:
    """Stands for an agent where an instance wants one to be there."""

    def before_start(self, ref: str) -> None:
        """Nothing is depended on."""

    def health(self, uuid: str) -> None:
        """No checks."""


def prepare(node: Node, operation: Operation) -> str:
    """Bring an instance to where *operation* begins; return its reference."""
    if not operation.before:
        return "case"
    node.attend(Attending())
    native = {**app()["native"], **operation.native}
    uuid = node.define(make_descriptor(**app(native=native)), name="case").instance
    for step in {
        "DEFINED": (),
        "CONFIGURED": ("configure",),
        "RUNNING": ("configure", "run"),
        "PAUSED": ("configure", "run", "pause"),
    }[operation.before]:
        getattr(node, step)(uuid)
    return uuid


def done(node: Node, root: Path, operation: Operation, uuid: str) -> bool:
    """Tell whether supervision has got there."""
    if operation.name == "repair":
        return driver_of(root).open(f"i-{uuid}").read().memory_max == 64 * MIB
    row = node.get(uuid)
    return row.state == "RUNNING" and row.restarts > 0


def passed(node: Node, root: Path, operation: Operation) -> list[Passed]:
    """Carry *operation* out in this process; return what it passes."""
    ref = prepare(node, operation)
    found: dict[str, bool] = {}

    def hear(point: str) -> None:
        found.setdefault(point, ref in inits(root).values())

    with passing(hear):
        if operation.act is None:
            supervisor = Supervisor(node, reconcile_s=0.2)
            supervisor.start()
            try:
                if operation.upset is not None:
                    operation.upset(root, ref)
                until(lambda: done(node, root, operation, ref), deadline_s=scale.LONG_S)
            finally:
                supervisor.close()
        else:
            if operation.upset is not None:
                operation.upset(root, ref)
            operation.act(node, ref)
    if any(row.instance == ref or row.name == ref for row in node.list()):
        node.remove(ref, force=True)
    return [Passed(*each) for each in found.items()]


def enumerate_cases(node: Node, root: Path) -> list[Case]:
    """Return every case: points of operations, by actions, by processes."""
    actions = (*ACTIONS, STOPPED_AND_KILLED)
    cases = []
    for operation in (*OPERATIONS.values(), *SUPERVISED.values()):
        points = passed(node, root, operation)
        alone = operation.act is not None
        for (point, with_init), action in itertools.product(points, actions):
            processes = ["agent"]
            if alone:
                processes.append("command")
            if alone and action in OUTSIDE:
                processes += ["launcher", *(["init"] if with_init else [])]
            cases += [Case(each, operation.name, point, action) for each in processes]
    cases += [
        Case("launcher", "configure", point, action)
        for point, action in itertools.product(LAUNCHER, actions)
    ]
    return cases
