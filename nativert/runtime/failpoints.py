"""The points of the operations and of supervision, and those of the launcher: all there are.

How they are armed, and what they do: `nativert.launcher.failpoints`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from nativert.launcher import failpoints
from nativert.launcher.failpoints import ACTIONS, LAUNCHER, VARIABLE, UnexpectedError, failpoint

__all__ = [
    "ACTIONS",
    "COMING_BACK",
    "LANDING",
    "LAUNCHER",
    "LEAVING",
    "MIGRATION",
    "POINTS",
    "SUPERVISION",
    "UnexpectedError",
    "arm",
    "failpoint",
    "passing",
]

# Each is passed when the step that it names has been carried out, and nothing after it has.
POINTS: Final = (
    "define.stored",
    "configure.intent",
    "configure.image",
    "configure.files",
    "configure.cgroup",
    "configure.limits",
    "configure.stored",
    "configure.init",
    "configure.init-noted",
    "configure.links",
    "configure.ports-noted",
    "configure.ports-claimed",
    "configure.ports",
    "configure.script",
    "run.intent",
    "run.started",
    "run.noted",
    "stop.intent",
    "stop.wished",
    "stop.ended",
    "end.stored",
    "pause.frozen",
    "resume.thawed",
    "scale.intent",
    "scale.stored",
    "scale.applied",
    "clean.intent",
    "clean.stored",
    "release.network",
    "release.init",
    "release.cgroup",
    "undefine.data",
    "undefine.stored",
)
# Passed by who supervises only, besides the points of the operations that it carries out.
SUPERVISION: Final = (
    "restart.decided",
    "restart.configured",
    "repair.done",
)
# Passed by the two sides of a migration, besides the points of the operations in it.
LEAVING: Final = (
    "migrate.begun",
    "migrate.prepared",
    "migrate.stopping",
    "migrate.stopped",
    "migrate.sent",
    "migrate.received",
    "migrate.committed",
    "migrate.done",
)
COMING_BACK: Final = ("migrate.aborting", "migrate.back")
# At the source of one whose process travels itself.
LIVE: Final = ("live.frozen", "live.dumping", "live.dumped", "live.thawed")
LANDING: Final = (
    "land.defined",
    "land.configured",
    "land.stored",
    "land.unpacked",
    "land.held",
    "land.starting",
    "land.started",
)
MIGRATION: Final = (*LEAVING, *LIVE, *COMING_BACK, *LANDING, "move.removed")


def arm(specification: str) -> None:
    """Arm the points of *specification*, ``name=action,...``, and no others; ValueError."""
    for part in filter(None, specification.split(",")):
        if part.partition("=")[0] not in (*POINTS, *SUPERVISION, *MIGRATION, *LAUNCHER):
            raise ValueError(f"no such failpoint: {part!r}")
    failpoints.arm(specification)


@contextmanager
def passing(hear: Callable[[str], None]) -> Iterator[None]:
    """Have *hear* called with every point that this process passes in the block."""
    failpoints.listeners.append(hear)
    try:
        yield
    finally:
        failpoints.listeners.remove(hear)


# What the environment arms is armed since the import; here its names are checked too.
arm(os.environ.get(VARIABLE, ""))
