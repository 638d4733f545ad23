"""Named points at the step boundaries of the operations, at which a test makes them fail.

``NATIVERT_FAILPOINTS=configure.cgroup=kill,run.noted=enospc`` arms two of them: the process
that comes there kills itself, or the step fails as a full disk would make it fail. Unset,
as it is outside of tests, a point is one look into an empty dictionary.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Final

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
    "stop.ended",
    "end.stored",
    "pause.frozen",
    "resume.thawed",
    "scale.intent",
    "scale.applied",
    "scale.stored",
    "clean.intent",
    "clean.stored",
    "release.network",
    "release.init",
    "release.cgroup",
    "undefine.data",
    "undefine.stored",
)
ACTIONS: Final = ("kill", "raise", "enospc")

_armed: dict[str, str] = {}


def arm(specification: str) -> None:
    """Arm the points of *specification*, ``name=action,...``, and no others; ValueError."""
    armed = {}
    for part in filter(None, specification.split(",")):
        name, _, action = part.partition("=")
        if name not in POINTS or action not in ACTIONS:
            raise ValueError(f"no such failpoint: {part!r}")
        armed[name] = action
    _armed.clear()
    _armed.update(armed)


def failpoint(name: str) -> None:
    """Fail here if the point *name* is armed: OSError, or the end of this process."""
    if not _armed:
        return
    action = _armed.pop(name, None)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action is not None:
        number = errno.ENOSPC if action == "enospc" else errno.EIO
        raise OSError(number, f"failpoint {name}: {os.strerror(number)}")


arm(os.environ.get("NATIVERT_FAILPOINTS", ""))
