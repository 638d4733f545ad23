"""Giving back what configure acquired. Safe twice, and safe where configure stopped half-way.

It goes on past a failure, so that one thing that is stuck keeps nothing else, and raises
one StepError with everything that failed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
from collections.abc import Callable, Iterable

from nativert.errors import Code, StepError
from nativert.isolation import process
from nativert.isolation.cgroups.driver import INIT
from nativert.launcher.client import Channel
from nativert.runtime.context import Context
from nativert.runtime.failpoints import failpoint
from nativert.runtime.protocols import Attached
from nativert.store.boot import Facts, LinkFacts
from nativert.store.durable import Row

_INIT_TIMEOUT_S = 10.0
_SERVED = re.compile(r"/i/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?: \(deleted\))?\Z")


def attached(facts: Facts) -> tuple[Attached, ...]:
    """Return the interfaces that facts name."""
    return tuple(
        Attached(
            link.name, link.link, link.index, link.mac, link.address, link.network, link.connected
        )
        for link in facts.links
    )


def noted(attached: Iterable[Attached]) -> tuple[LinkFacts, ...]:
    """Return what facts say of interfaces."""
    return tuple(
        LinkFacts(a.name, a.link, a.index, a.mac, a.address, a.network, a.connected)
        for a in attached
    )


def everything(
    context: Context,
    row: Row,
    facts: Facts | None,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Release init, network, ports, cgroup, image, run directory and facts of an instance.

    Without *facts* (of another boot, damaged, or removed) it goes by what the row was given.
    *meanwhile* is called once, while init is on its way out.
    """
    failures: list[Exception] = []

    def attempt(step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as e:  # noqa: BLE001 - the rest must be released all the same
            failures.append(e)

    # Cut off first: what still runs must not answer for an address that is given away.
    if row.interfaces and (facts is None or facts.details.get("network", True)):
        attempt(lambda: _network(context, row, facts))
    attempt(lambda: failpoint("release.network"))
    done = False

    def once() -> None:
        nonlocal done
        if not done:
            done = True
            attempt(meanwhile)

    attempt(lambda: _init(context, row, facts, once))
    once()  # There may be no init any more.
    attempt(lambda: failpoint("release.init"))
    attempt(lambda: context.cgroup(row.uuid).remove())
    attempt(lambda: failpoint("release.cgroup"))
    # What configure unpacked; the next one asks again what the image is.
    image = context.paths.instance_lib(row.uuid) / "image"
    attempt(lambda: context.os.remove_tree(image))
    if failures:
        # The facts stay: they are what a second attempt goes by.
        cause = failures[0] if len(failures) == 1 else ExceptionGroup("several failed", failures)
        raise StepError(row.name, "release", cause, code=Code.CLEAN) from cause
    context.os.remove_tree(context.paths.instance_run(row.uuid))


def _network(context: Context, row: Row, facts: Facts | None) -> None:
    if facts is None or facts.ports:
        for interface in row.interfaces:
            context.network.withdraw(interface.address)
        context.claims.release_ports(context.identity.id, row.uuid)
    links = () if facts is None else attached(facts)
    if not links:
        # It may have been interrupted before it could note what the kernel gave it.
        present = set(context.network.links())
        links = tuple(
            Attached(i.name, context.link_name(i.link), 0, "", i.address)
            for i in row.interfaces
            if context.link_name(i.link) in present
        )
    context.network.detach(links)


def _init(context: Context, row: Row, facts: Facts | None, meanwhile: Callable[[], None]) -> None:
    cgroup = context.cgroup(row.uuid)
    pidfd, leaves = None, False
    if facts is not None and facts.init_pid is not None and facts.init_start is not None:
        pidfd = process.open_pidfd(facts.init_pid, facts.init_start)
    try:
        with context.kept_init(row.uuid, timeout_s=_INIT_TIMEOUT_S) as channel:
            if pidfd is None:
                pidfd = _peer_pidfd(channel)
            channel.call({"verb": "release"})
            leaves = True
            meanwhile()
            channel.close()
    except (OSError, EOFError):
        pass  # Not there, or it ended at the word: the pidfd tells which.
    if pidfd is None:
        pidfd = _found(context, row.uuid)
    if cgroup.populated():
        # A frozen process dies of init's kill only once it is thawed (v1).
        cgroup.kill()
    if pidfd is None:
        return
    try:
        if not leaves or not process.wait_end(pidfd, _INIT_TIMEOUT_S):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not process.wait_end(pidfd, _INIT_TIMEOUT_S):
                raise TimeoutError("init does not end: a process in it waits for the kernel")
    except ProcessLookupError:
        pass  # Ended and reaped, which is what was wanted.
    finally:
        os.close(pidfd)


def inits(context: Context) -> dict[int, str | None]:
    """Return every init of this node by pid, with the instance that it serves.

    By its open run directory, which it keeps when the directory is removed; None for one
    that has only just been forked.
    """
    found: dict[int, str | None] = {}
    for pid in context.driver.open(INIT).pids():
        served = (_SERVED.search(target) for target in process.open_files(pid))
        found[pid] = next((match[1] for match in served if match), None)
    return found


def _found(context: Context, uuid: str) -> int | None:
    # Noted nowhere, or its socket was taken away: it still is in the node's own cgroup.
    for pid, serves in inits(context).items():
        start = process.start_time(pid)
        if serves == uuid and start is not None:
            return process.open_pidfd(pid, start)
    return None


def _peer_pidfd(channel: Channel) -> int | None:
    # Init itself counts its pid as 1; the socket's credentials have the host's number.
    data = channel.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, _, _ = struct.unpack("iII", data)
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def data(context: Context, row: Row) -> None:
    """Remove the instance's directory in lib: data, image and logs."""
    context.os.remove_tree(context.paths.instance_lib(row.uuid))
