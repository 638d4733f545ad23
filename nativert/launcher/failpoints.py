"""Named points at step boundaries, at which a test makes a process fail.

``NATIVERT_FAILPOINTS=configure.cgroup=kill,run.noted=enospc`` arms two of them. Unset, as it is
outside of tests, a point is two looks at empty names. Here are the launcher's own points; those
of the operations, which the launcher does not pass, are in `nativert.runtime.failpoints`.
"""

from __future__ import annotations

import errno
import os
import signal

TYPE_CHECKING = False  # typing costs a millisecond of every start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

VARIABLE: Final = "NATIVERT_FAILPOINTS"
# Each is passed when the step that it names has been carried out, and nothing after it has.
LAUNCHER: Final = (
    "launcher.locked",
    "launcher.detached",
    "launcher.placed",
    "launcher.listening",
    "launcher.cloned",
    "launcher.built",
    "launcher.answered",
)
# Ends, stands still until SIGCONT, has no room, has a bad disk, meets what nobody expected.
ACTIONS: Final = ("kill", "stop", "enospc", "eio", "raise")
_ERRNOS: Final = {"enospc": errno.ENOSPC, "eio": errno.EIO}

_armed: dict[str, str] = {}
# Told of every point that is passed.
listeners: list[Callable[[str], None]] = []


class UnexpectedError(Exception):
    """What the action `raise` raises: of a class that no step of the program raises."""


def arm(specification: str) -> None:
    """Arm the points of *specification*, ``name=action,...``, and no others; ValueError."""
    armed = {}
    for part in filter(None, specification.split(",")):
        name, _, action = part.partition("=")
        if action not in ACTIONS:
            raise ValueError(f"no such failpoint: {part!r}")
        armed[name] = action
    _armed.clear()
    _armed.update(armed)


def failpoint(name: str) -> None:
    """Fail here if the point *name* is armed, once: OSError, UnexpectedError, or a signal."""
    for hear in listeners:
        hear(name)
    if not _armed:
        return
    action = _armed.pop(name, None)
    if action is None:
        return
    if action in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        return
    text = f"failpoint {name}"
    if action == "raise":
        raise UnexpectedError(text)
    raise OSError(_ERRNOS[action], f"{text}: {os.strerror(_ERRNOS[action])}")


arm(os.environ.get(VARIABLE, ""))
