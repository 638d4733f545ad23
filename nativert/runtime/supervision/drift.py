"""What of an instance is not as it was made: its limits, its cgroup, its links."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from nativert.fdu.states import State
from nativert.isolation import process
from nativert.isolation.cgroups.limits import Limits
from nativert.launcher.protocol import MAX_FDS
from nativert.runtime import limits as limits_of
from nativert.runtime.context import Context, cgroup_name, descriptor_of
from nativert.runtime.interfaces import interface_requests
from nativert.runtime.observe import Observed
from nativert.runtime.release import attached, noted
from nativert.store import boot
from nativert.store.boot import Facts

# What was written and what was found, where the kernel reads back something else.
Accepted = dict[str, tuple[Limits, Limits]]
Kind = Literal["limits", "cgroup", "processes", "namespace", "links"]
_ROUNDING: Final = 1 << 16
_REMOVED: Final = (
    "its cgroup was removed and made anew, which its init, of an older version, cannot be told:"
    " no program starts in it before clean and configure"
)
_ELSEWHERE: Final = "its init is not in the network namespace that was made for it"


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that is not as it should be."""

    kind: Kind
    message: str


def find(
    context: Context,
    seen: Observed,
    present: Collection[str],
    accepted: tuple[Limits, Limits] | None,
) -> list[Drift]:
    """Return what has been changed from outside; changes nothing. *present* are the links."""
    found: list[Drift] = []
    row, facts = seen.row, seen.facts
    if facts is None:
        return found
    directories = _directories(context, row.uuid)
    missing = [path for path in directories if not os.path.isdir(path)]
    if missing:
        found.append(Drift("cgroup", f"its cgroup was removed: {missing[0]}"))
    else:
        wanted = limits_of.decode(row.limits)
        if wanted is not None:
            now = context.cgroup(row.uuid).read()
            if differ(wanted, now) and accepted != (wanted, now):
                found.append(Drift("limits", f"its limits were changed: {_named(wanted, now)}"))
    pid = facts.details.get("pid")
    with_application = seen.state in (State.RUNNING, State.PAUSED) and isinstance(pid, int)
    if with_application and _moved(int(str(pid)), row.uuid, len(directories)):
        found.append(Drift("processes", "its processes were moved out of its cgroup"))
    if _elsewhere(facts):
        found.append(Drift("namespace", _ELSEWHERE))
    if facts.links:
        gone = [link.link for link in facts.links if link.link not in present]
        if gone:
            found.append(Drift("links", f"its link was removed: {', '.join(gone)}"))
    return found


def repair(context: Context, seen: Observed, drift: Drift) -> tuple[Facts, str]:
    """Put it back; return the facts, and what stays wrong. The caller holds the lock."""
    row, facts = seen.row, seen.facts
    if facts is None:
        raise AssertionError("what is repaired is configured")
    if drift.kind in ("limits", "cgroup"):
        if drift.kind == "cgroup":
            context.driver.create(cgroup_name(row.uuid))
        wanted = limits_of.decode(row.limits)
        if wanted is not None:
            context.cgroup(row.uuid).apply(wanted)
        if drift.kind == "cgroup":
            _bring_back(context, row.uuid, facts)
            return facts, "" if _hand_over(context, row.uuid) else _REMOVED
    elif drift.kind == "processes":
        _bring_back(context, row.uuid, facts)
        # Whoever moved them may have removed it and made another one of that name.
        _hand_over(context, row.uuid)
    elif drift.kind == "namespace":
        return facts, f"{_ELSEWHERE}: clean and configure it"
    else:
        facts = _links(context, seen, facts)
        boot.write_facts(context.paths, row.uuid, facts)
    return facts, ""


def differ(wanted: Limits, found: Limits) -> bool:
    """Tell whether limits that are in force are not those that were asked for."""
    return bool(_named(wanted, found))


def _named(wanted: Limits, found: Limits) -> str:
    names = []
    for name in ("cpu_weight", "memory_max", "memory_high", "memory_swap", "pids_max"):
        asked, has = getattr(wanted, name), getattr(found, name)
        if asked is not None and (has is None or abs(has - asked) > _slack(name)):
            names.append(f"{name} is {'unset' if has is None else has} and not {asked}")
    if wanted.cpu_max is not None and (
        found.cpu_max is None or abs(found.cpu_max - wanted.cpu_max) > 0.01 * wanted.cpu_max
    ):
        has = "unset" if found.cpu_max is None else f"{found.cpu_max:g}"
        names.append(f"cpu_max is {has} and not {wanted.cpu_max:g}")
    return ", ".join(names)


def _slack(name: str) -> int:
    # Memory is rounded to pages, which may have 64 KiB; a weight loses digits on v1.
    return _ROUNDING if name.startswith("memory") else 2 if name == "cpu_weight" else 0


def _directories(context: Context, uuid: str) -> list[str]:
    entry = context.cgroup(uuid).entry()
    found = [os.path.dirname(path) for path in entry.tasks]
    if entry.into:
        found.append(entry.into)
    return list(dict.fromkeys(found))


def _elsewhere(facts: Facts) -> bool:
    if facts.init_pid is None or facts.netns_inode is None:
        return False
    try:
        inode = os.stat(f"/proc/{facts.init_pid}/ns/net").st_ino
    except (FileNotFoundError, ProcessLookupError):
        return False  # It has ended, which others tell.
    return inode != facts.netns_inode and process.alive(facts.init_pid, facts.init_start)


def _moved(pid: int, uuid: str, hierarchies: int) -> bool:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            inside = sum(f"/{cgroup_name(uuid)}" in line for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return False  # It has ended, which others tell.
    return inside < hierarchies


def _bring_back(context: Context, uuid: str, facts: Facts) -> None:
    directories = _directories(context, uuid)
    for pid in _inside(facts):
        for directory in directories:
            fd = os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, str(pid).encode())
            except ProcessLookupError:
                pass  # It has ended meanwhile.
            finally:
                os.close(fd)


def _hand_over(context: Context, uuid: str) -> bool:
    """Have init start programs in the cgroup that is there now; False if it knows no such thing."""
    entry = context.cgroup(uuid).entry()
    fds: list[int] = []

    def give(path: str | None, flags: int = os.O_RDONLY) -> int | None:
        if path is None:
            return None
        fds.append(os.open(path, flags | os.O_CLOEXEC))
        return len(fds) - 1

    try:
        cgroup = {
            "tasks": [give(path, os.O_WRONLY) for path in entry.tasks],
            "into": give(entry.into, os.O_RDONLY | os.O_DIRECTORY),
            "oom": give(entry.oom),
            "peak": give(entry.peak),
            "cpu": give(entry.cpu),
            "pids": give(entry.pids),
        }
        if len(fds) > MAX_FDS:
            return False
        with context.init(uuid) as channel:
            answer, _ = channel.call({"verb": "status", "cgroup": cgroup}, fds)
    finally:
        for fd in fds:
            os.close(fd)
    return bool(answer.get("cgroup"))


def _inside(facts: Facts) -> list[int]:
    """Return every process of the instance's PID namespace but its init."""
    if facts.init_pid is None or not process.alive(facts.init_pid, facts.init_start):
        return []
    namespace = os.readlink(f"/proc/{facts.init_pid}/ns/pid")
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == facts.init_pid:
            continue
        try:
            if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                found.append(int(name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # It has ended meanwhile.
    return found


def _links(context: Context, seen: Observed, facts: Facts) -> Facts:
    row = seen.row
    if facts.init_pid is None or facts.init_start is None:
        raise ProcessLookupError(3, "its init is gone")
    netns = os.open(f"/proc/{facts.init_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not process.alive(facts.init_pid, facts.init_start):
            raise ProcessLookupError(3, "its init is gone")
        present = set(context.network.links())
        missing = {link.name for link in facts.links if link.link not in present}
        requests = interface_requests(context, row, descriptor_of(row.descriptor, row.name))
        with context.host_lock(shared=True):
            context.network.prepare()
            made = context.network.attach(netns, [r for r in requests if r.name in missing])
    finally:
        os.close(netns)
    known = {each.name: each for each in (*attached(facts), *made)}
    return msgspec.structs.replace(facts, links=noted(known[link.name] for link in facts.links))
