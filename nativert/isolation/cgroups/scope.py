"""Where a node's cgroups live: in a scope of systemd, or in a top-level cgroup of its own.

systemd regards every cgroup as its own that it was not told to leave alone. So where it is
PID 1 the node's are below one transient scope with Delegate=yes, in a slice of the system:
what starts the first launcher (a login session, a service) may end or be restarted, and
limits survive daemon-reload and daemon-reexec. The scope is there as long as a process is in
it; it is made anew for the next launcher.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from nativert.isolation.cgroups import files, processes
from nativert.isolation.cgroups.driver import LAUNCHER, LEAVES
from nativert.isolation.cgroups.hierarchies import keepers, mounted
from nativert.isolation.cgroups.system_bus import SOCKET, BusError, Property, SystemBus

SLICE: Final = "system.slice"
# Stops what runs when the host shuts down; see agent/systemd. Units stop in reverse, so that
# the scope, whose stop kills at once, comes after it. A host need not have it.
SHUTDOWN: Final = "nativert-shutdown.service"
_NO_LIMIT: Final = 2**64 - 1
_TIMEOUT_S: Final = 10.0
_PROBE_TIMEOUT_S: Final = 1.0
_RETRY_S: Final = 0.01


class Place(msgspec.Struct, frozen=True):
    """The node's cgroup as a path below each hierarchy, and the reason for it.

    *unit* is the scope that systemd makes there; None for a cgroup that we make.
    """

    parent: str
    unit: str | None
    why: str


def choose(name: str, *, host: Path = Path("/")) -> Place:
    """Decide where the cgroup *name*, such as "nativert-a1b2c3", belongs on this host.

    The answer is the same for a whole boot, unless the bus goes or comes while nothing of
    the node runs.
    """
    reason = _no_scope(host)
    if reason:
        return Place(name, None, reason)
    if any(_inhabited(root / name) for root in _roots(host)):
        return Place(name, None, "instances made before the system bus answered are in it")
    unit = f"{name}.scope"
    return Place(f"{SLICE}/{unit}", unit, "a scope of systemd, which is PID 1")


def settle(place: Place, pid: int, prepare: Callable[[], None], *, host: Path = Path("/")) -> None:
    """Make the place for a launcher that is about to join it: *pid*, held until this returns.

    *prepare* makes what is below (`Driver.prepare`). OSError if systemd refuses, or does not
    answer in time.
    """
    if place.unit is None:
        prepare()
        return
    deadline = time.monotonic() + _TIMEOUT_S
    with SystemBus(str(host / SOCKET), timeout_s=_TIMEOUT_S) as bus:
        while not bus.start_scope(place.unit, _properties(place.unit, pid)):
            # An earlier launcher's scope: it lives by its inits, or is about to go.
            try:
                prepare()
                bus.attach(place.unit, f"/{LAUNCHER}", pid)
                return
            except (FileNotFoundError, BusError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_S)
        prepare()


def _properties(unit: str, pid: int) -> list[Property]:
    return [
        ("Description", ("s", f"Instances of the nativert node {unit.removesuffix('.scope')}")),
        ("Slice", ("s", SLICE)),
        ("Before", ("as", [SHUTDOWN])),
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("KillMode", ("s", "mixed")),
        # A scope that failed must not keep its name until somebody resets it.
        ("CollectMode", ("s", "inactive-or-failed")),
        # Instances have pids limits of their own; the default is 15 % of the host's.
        ("TasksMax", ("t", _NO_LIMIT)),
    ]


def _no_scope(host: Path) -> str:
    """Return why systemd cannot be asked for a scope; "" if it can. Reads little: always asked."""
    # sd_booted(3). A container may see this directory of its host.
    if not os.path.isdir(host / "run/systemd/system"):
        return "systemd is not PID 1"
    first = files.read_optional(str(host / "proc/1/comm"))
    if first != "systemd":
        return f"systemd is not PID 1 here, {first or 'nothing visible'} is"
    roots = keepers(mounted(host / "sys/fs/cgroup"))
    if not roots or not all(os.path.isdir(f"{root}/{SLICE}") for root in roots):
        return "the cgroups of systemd are not visible here"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PROBE_TIMEOUT_S)
        try:
            sock.connect(str(host / SOCKET))
        except OSError as e:
            return f"the system bus does not answer: {e.strerror or e}"
    return ""


def _roots(host: Path) -> list[Path]:
    found = mounted(host / "sys/fs/cgroup")
    every = [*found.v1.values(), *([found.unified] if found.unified else [])]
    return [Path(root) for root in dict.fromkeys(every)]


def _inhabited(directory: Path) -> bool:
    # Instances without a process count: they are somebody's until they are cleaned.
    path = str(directory)
    return bool(set(files.subdirectories(path)).difference(LEAVES) or processes.pids(path))
