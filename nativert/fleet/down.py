"""Removing a fleet: whatever of it is there, however its making ended. Safe twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from nativert.errors import NativertError
from nativert.fleet import network, plan
from nativert.fleet.plan import Member, Plan
from nativert.isolation import process
from nativert.isolation.network import named
from nativert.store import registry
from nativert.store.claims import Claims
from nativert.store.files import DamagedError
from nativert.store.locks import NodeLock, holder

_AGENT_S: Final = 10.0
_REMOVAL_S: Final = 120.0


def down(root: Path) -> Plan:
    """End the agents, remove instances, namespaces, links and directories; return what it was.

    NativertError NOT_FOUND where there is none. What cannot be removed stays in the plan.
    """
    plan.read(root)
    with plan.lock(root):
        fleet = plan.read(root)
        remove(root, fleet)
    return fleet


def remove(root: Path, fleet: Plan) -> None:
    """Do it, under the fleet's lock; ExceptionGroup with what failed."""
    errors: list[Exception] = []
    ending = [pidfd for node in fleet.nodes for pidfd in _ask_to_end(node)]
    for pidfd in ending:
        if not process.wait_end(pidfd, _AGENT_S):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            process.wait_end(pidfd, _AGENT_S)
        os.close(pidfd)
    removals = [(node, _removal(node)) for node in fleet.nodes if node.root.exists()]
    for node, removal in removals:
        try:
            _finish(node, removal)
        except (NativertError, OSError) as e:
            errors.append(e)
    for node in fleet.nodes:
        _kill_rest(node)
    if errors:
        raise ExceptionGroup("the fleet is not removed", errors)
    for node in fleet.nodes:
        _forget(node)
    network.remove(fleet)
    plan.forget(root)


def _ask_to_end(node: Member) -> Iterator[int]:
    """Send TERM to the agent of a node; yield its pidfd, if there is one."""
    path = NodeLock(node.paths, "agent").path
    pid = holder(path)
    start = None if pid is None else process.start_time(pid)
    pidfd = None if pid is None or start is None else process.open_pidfd(pid, start)
    if pidfd is None:
        return
    # Held now, and still the one that has the lock: nobody else has got its number.
    if holder(path) == pid:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        yield pidfd
    else:
        os.close(pidfd)


def _removal(node: Member) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "nativert.fleet.removal", str(node.root)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C on the terminal must not strike it half-way.
        start_new_session=True,
    )


def _finish(node: Member, removal: subprocess.Popen[str]) -> None:
    try:
        _, told = removal.communicate(timeout=_REMOVAL_S)
    except BaseException:
        removal.kill()
        removal.wait()
        raise
    if removal.returncode:
        reason = told.strip().rpartition("\n")[2] or f"exit code {removal.returncode}"
        raise NativertError(f"{node.name}: {reason}", hint="nativert down tries again")


def _kill_rest(node: Member) -> None:
    """Kill what was started for the node and has not come to its lock: it is in its namespace."""
    deadline = time.monotonic() + _AGENT_S
    while (pids := list(_left(node))) and time.monotonic() < deadline:
        for pid, start in pids:
            process.kill(pid, start)
        time.sleep(0.01)


def _left(node: Member) -> Iterator[tuple[int, int]]:
    try:
        netns = os.stat(named.path_of(node.netns)).st_ino
    except FileNotFoundError:
        return
    root = os.fsencode(node.root)
    for name in os.listdir("/proc"):
        # Another's process may end meanwhile, or not be ours to look at.
        with suppress(OSError):
            if (
                name.isdigit()
                and os.stat(f"/proc/{name}/ns/net").st_ino == netns
                and root in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                and (start := process.start_time(int(name))) is not None
            ):
                yield int(name), start


def _forget(node: Member) -> None:
    with suppress(DamagedError):
        known = registry.read_node(node.paths.lib)
        if known is not None:
            Claims().release_node(known.id)
    with suppress(FileNotFoundError):
        shutil.rmtree(node.root)
