"""What carries this node's tag and belongs to no instance: found, shown, removed.

Nothing of another node or of the host is looked at twice: every name carries the tag. With
no instance configured, what the node itself has on the host (bridge, table, sysctls,
cgroups, launcher) is left over too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nativert.errors import NativertError
from nativert.fdu.states import State
from nativert.isolation import process
from nativert.isolation.cgroups.driver import INIT, LAUNCHER
from nativert.runtime import observe as observing
from nativert.runtime.context import Context
from nativert.runtime.protocols import Attached
from nativert.runtime.release import cgroup_name
from nativert.runtime.views import Leftover
from nativert.store import boot
from nativert.store.durable import Row


@dataclass(frozen=True, slots=True)
class _Find:
    kind: str
    name: str
    remove: Callable[[], None]


def collect(context: Context, *, dry_run: bool) -> list[Leftover]:
    """Return what is left over; remove it unless *dry_run*."""
    rows = {row.uuid: row for row in context.store.rows() if not row.corrupt}
    if not dry_run:
        for uuid in rows:
            lock = context.lock(uuid)
            if lock.try_acquire():
                try:
                    observing.settle(context, context.store.get(uuid))
                finally:
                    lock.release()
    configured = {
        uuid
        for uuid, row in rows.items()
        if observing.observe(context, row).state is not State.DEFINED
        or boot.read_facts(context.paths, uuid) is not None
    }
    finds = [
        *_processes(context, configured),
        *_cgroups(context, configured),
        *_links(context, configured, rows),
        *_directories(context, set(rows), configured),
    ]
    if not configured:
        finds += _node(context)
    return [_removed(find, dry_run=dry_run) for find in finds]


def _removed(find: _Find, *, dry_run: bool) -> Leftover:
    if not dry_run:
        try:
            find.remove()
        except (OSError, NativertError):
            return Leftover(kind=find.kind, name=find.name, removed=False)
    return Leftover(kind=find.kind, name=find.name, removed=not dry_run)


def _processes(context: Context, configured: set[str]) -> list[_Find]:
    known = set()
    for uuid in configured:
        facts = boot.read_facts(context.paths, uuid)
        if facts is None or facts.intent == "configure":
            # Being made at this moment: its pid is not noted yet.
            return []
        known.add(facts.init_pid)
    finds = []
    for pid in context.driver.open(INIT).pids():
        start = process.start_time(pid)
        if pid not in known and start is not None:
            finds.append(_Find("process", f"init {pid}", partial(process.kill, pid, start)))
    return finds


def _cgroups(context: Context, configured: set[str]) -> list[_Find]:
    kept = {cgroup_name(uuid) for uuid in configured}
    return [
        _Find("cgroup", f"{context.driver.parent}/{name}", partial(_remove_cgroup, context, name))
        for name in context.driver.names()
        if name not in kept
    ]


def _remove_cgroup(context: Context, name: str) -> None:
    cgroup = context.driver.open(name)
    if cgroup.populated():
        cgroup.kill()
    cgroup.remove()


def _links(context: Context, configured: set[str], rows: dict[str, Row]) -> list[_Find]:
    kept = {
        context.link_name(interface.link)
        for uuid in configured
        for interface in rows[uuid].interfaces
    }
    return [
        _Find("link", link, partial(context.network.detach, [Attached("", link, 0, "", "")]))
        for link in context.network.links()
        if link not in kept
    ]


def _directories(context: Context, known: set[str], configured: set[str]) -> list[_Find]:
    paths = [
        *(
            context.paths.instance_run(u)
            for u in context.paths.instances_run()
            if u not in configured
        ),
        *(context.paths.instance_lib(u) for u in context.paths.instances_lib() if u not in known),
    ]
    return [_Find("directory", str(path), partial(context.os.remove_tree, path)) for path in paths]


def _node(context: Context) -> list[_Find]:
    finds = []
    if context.driver.open(LAUNCHER).pids():
        finds.append(_Find("process", "launcher", partial(_launcher, context)))
    bridge = f"nrt-{context.identity.tag}"
    if context.network.present():
        finds.append(_Find("network", bridge, context.network.destroy))
    if context.driver.exists():
        finds.append(_Find("cgroup", context.driver.parent, context.driver.destroy))
    return finds


def _launcher(context: Context) -> None:
    pids = context.driver.open(LAUNCHER).pids()
    starts = {pid: process.start_time(pid) for pid in pids}
    if not context.launcher_leaves():
        raise OSError(16, "the launcher has instances")
    for pid, start in starts.items():
        pidfd = None if start is None else process.open_pidfd(pid, start)
        if pidfd is not None:
            try:
                process.wait_end(pidfd, 5.0)
            finally:
                os.close(pidfd)
