"""What carries this node's tag and belongs to no instance: found, shown, removed.

Nothing of another node or of the host is looked at twice: every name carries the tag. With
no instance configured, what the node itself has on the host (bridge, table, sysctls,
cgroups, launcher) is left over too. Other commands may be at work: traces are listed before
the instances that they may belong to, and removed under the lock of that instance.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from nativert.errors import NativertError, UnknownInstanceError
from nativert.isolation import process
from nativert.isolation.cgroups.driver import LAUNCHER
from nativert.runtime import observe as observing
from nativert.runtime import release
from nativert.runtime.context import Context, cgroup_name
from nativert.runtime.network import BridgeNetwork
from nativert.runtime.protocols import Attached, Mending
from nativert.runtime.views import Leftover
from nativert.store import boot
from nativert.store.durable import Row
from nativert.store.locks import NodeLock, holder

_CGROUP = cgroup_name("")


@dataclass(frozen=True, slots=True)
class _Trace:
    """Something of an instance; `uuid` is None where nothing tells of which."""

    kind: str
    name: str
    uuid: str | None
    remove: Callable[[], None]


def collect(context: Context, *, dry_run: bool) -> list[Leftover]:
    """Return what is left over; remove it unless *dry_run*."""
    traces = [
        *_processes(context),
        *_cgroups(context),
        *_links(context),
        *_rules(context),
        *_directories(context),
        *_locks(context),
    ]
    rows = context.store.rows()
    if not dry_run:
        _settle(context, rows)
    # A damaged row may be anybody's whose name it does not tell any more: nothing that is
    # not known to be left over is touched then.
    blind = any("uuid" in row.corrupt for row in rows)
    links = {context.link_name(i.link): row.uuid for row in rows for i in row.interfaces}
    addresses = {i.address: row.uuid for row in rows for i in row.interfaces}
    configured = {row.uuid for row in rows if row.corrupt or _has_facts(context, row.uuid)}
    known = {row.uuid for row in rows}
    found = []
    for trace in traces:
        uuid = trace.uuid
        if trace.kind in ("link", "rule"):
            uuid = (links if trace.kind == "link" else addresses).get(trace.name)
        kept = uuid in configured or (uuid in known and trace.kind in ("data", "lock"))
        if not kept and not (blind and uuid not in known):
            kind = "directory" if trace.kind == "data" else trace.kind
            removed = not dry_run and _remove(context, trace, uuid)
            found.append(Leftover(kind=kind, name=trace.name, removed=removed))
    if not configured and not blind:
        found += _node(context, dry_run=dry_run)
    return found


def _has_facts(context: Context, uuid: str) -> bool:
    return boot.read_facts(context.paths, uuid) is not None


def _settle(context: Context, rows: list[Row]) -> None:
    for row in rows:
        lock = context.lock(row.uuid)
        if row.corrupt or not lock.try_acquire():
            continue
        try:
            observing.settle(context, context.store.get(row.uuid))
        except UnknownInstanceError:
            lock.forget()
        except (NativertError, OSError):
            continue  # Told by the next operation on it; the others are looked after.
        finally:
            lock.release()


def _remove(context: Context, trace: _Trace, uuid: str | None) -> bool:
    if uuid is None:
        return _done(trace.remove)
    lock = context.lock(uuid)
    if not lock.try_acquire():
        return False
    try:
        context.store.get(uuid)
    except UnknownInstanceError:
        done = _done(trace.remove)
        lock.forget()
        return done
    else:
        # Configured since the traces were listed: then it is somebody's again.
        return not _has_facts(context, uuid) and _done(trace.remove)
    finally:
        lock.release()


def _done(remove: Callable[[], object]) -> bool:
    try:
        remove()
    except (OSError, NativertError):
        return False
    return True


def _processes(context: Context) -> Iterator[_Trace]:
    for pid, uuid in release.inits(context).items():
        start = process.start_time(pid)
        # One that has only just been forked ends by itself if its launcher does.
        if uuid is not None and start is not None:
            yield _Trace("process", f"init {pid}", uuid, partial(process.kill, pid, start))


def _cgroups(context: Context) -> Iterator[_Trace]:
    for name in context.driver.names():
        uuid = name.removeprefix(_CGROUP)
        path = f"{context.driver.parent}/{name}"
        yield _Trace("cgroup", path, uuid, partial(_remove_cgroup, context, name))


def _remove_cgroup(context: Context, name: str) -> None:
    cgroup = context.driver.open(name)
    if cgroup.populated():
        cgroup.kill()
    cgroup.remove()


def _links(context: Context) -> Iterator[_Trace]:
    for link in context.network.links():
        attached = [Attached("", link, 0, "", "")]
        yield _Trace("link", link, None, partial(context.network.detach, attached))


def _rules(context: Context) -> Iterator[_Trace]:
    if isinstance(context.network, Mending):
        for address in context.network.published_addresses():
            yield _Trace("rule", address, None, partial(context.network.withdraw, address))


def _directories(context: Context) -> Iterator[_Trace]:
    paths = context.paths
    for uuid in paths.instances_run():
        path = paths.instance_run(uuid)
        yield _Trace("directory", str(path), uuid, partial(context.os.remove_tree, path))
    for uuid in paths.instances_lib():
        path = paths.instance_lib(uuid)
        yield _Trace("data", str(path), uuid, partial(context.os.remove_tree, path))


def _locks(context: Context) -> Iterator[_Trace]:
    for uuid in context.paths.instances_locked():
        # Removed by whoever holds it last and finds no such instance.
        yield _Trace("lock", str(context.paths.instance_lock(uuid)), uuid, lambda: None)


def _node(context: Context, *, dry_run: bool) -> Iterator[Leftover]:
    lock = context.host_lock(shared=False)
    if not lock.try_acquire():
        return  # Somebody configures an instance: it is in use.
    try:
        if any(_has_facts(context, row.uuid) for row in context.store.rows()) or _joined(context):
            return
        bridge = f"nrt-{context.identity.tag}"
        for kind, name, there, remove in (
            (
                "process",
                "launcher",
                lambda: bool(context.driver.open(LAUNCHER).pids()),
                partial(_launcher, context),
            ),
            ("network", bridge, context.network.present, context.network.destroy),
            ("cgroup", context.driver.parent, context.driver.exists, context.driver.destroy),
        ):
            if there():
                yield Leftover(kind=kind, name=name, removed=not dry_run and _done(remove))
    finally:
        lock.release()


def _joined(context: Context) -> bool:
    """Tell whether an agent keeps the node's network joined with those of other nodes."""
    network = context.network
    joined = isinstance(network, BridgeNetwork) and network.overlay.plan() is not None
    return joined and holder(NodeLock(context.paths, "agent").path) is not None


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
