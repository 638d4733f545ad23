"""configure_fdu: from DEFINED to CONFIGURED, everything or nothing.

Acquires, in this order: the image, the instance's files, its cgroup with the limits, init
with the namespaces, the network, the ports; then the descriptor's script runs inside. The
intent stands in the facts before the first of them, so that whoever comes after a crash
knows what to release.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from nativert.errors import Code, NativertError, StepError
from nativert.fdu.descriptor import Descriptor
from nativert.fdu.states import State
from nativert.isolation import process
from nativert.isolation.cgroups.driver import Cgroup
from nativert.isolation.cgroups.limits import Limits
from nativert.launcher.client import ReportedError
from nativert.launcher.plan import Sandbox
from nativert.runtime import admission, etc, execute, program, release, root, users
from nativert.runtime import limits as limits_of
from nativert.runtime.context import Context, cgroup_name, descriptor_of
from nativert.runtime.failpoints import failpoint
from nativert.runtime.interfaces import interface_requests, published_address
from nativert.runtime.observe import Observed
from nativert.runtime.protocols import Attached, InterfaceRequest, PortRequest, Progress
from nativert.store import boot
from nativert.store.boot import Facts, PortFacts
from nativert.store.claims import PortClaim
from nativert.store.durable import Row

# How long a descriptor's script may take.
_SCRIPT_S: Final = 3600.0


@contextmanager
def step(instance: str, name: str, code: Code = Code.CONFIGURE) -> Iterator[None]:
    """Give a kernel's refusal the name of the step; what we refuse ourselves passes."""
    try:
        yield
    except NativertError:
        raise
    except OSError as e:
        hint = ""
        if e.errno == errno.ENOSPC:
            hint = "no room: free some, or raise the limit that is full"
        elif isinstance(e, ReportedError) and e.step == "root file system" and e.errno == 30:
            hint = "a mount target must exist where its parent is shown read-only"
        elif isinstance(e, ReportedError) and e.errno == errno.ENODEV:
            # mount(2): the file system type is not in the kernel, and no module has it.
            hint = "modprobe overlay, or use a kernel that is built with CONFIG_OVERLAY_FS"
        raise StepError(instance, name, e, code=code, hint=hint) from e


class Sources:
    """The host side of one instance, made by `_files`."""

    def __init__(self, context: Context, row: Row) -> None:
        lib = context.paths.instance_lib(row.uuid)
        self.run = context.paths.instance_run(row.uuid)
        self.data = lib / "data"
        self.log = lib / "log"
        self.image = lib / "image"
        self.etc = self.run / "etc"
        self.hidden: Path | None = None
        self.script = self.run / "configure"


def configure(
    context: Context,
    seen: Observed,
    *,
    progress: Progress | None = None,
    script_s: float = _SCRIPT_S,
) -> Observed:
    """Carry configure out; the caller holds the lock and has checked the edge.

    A script that has not ended after *script_s* has failed: the lock is not held for ever.
    """
    row = seen.row
    descriptor = descriptor_of(row.descriptor, row.name)
    limits = limits_of.decode(row.limits) or limits_of.of_descriptor(descriptor)
    context.driver.check(limits)
    admission.check_free(descriptor.computation_requirements, context.os, context.paths.lib)
    facts = Facts(
        boot_id=boot.boot_id(),
        state=State.DEFINED.value,
        intent="configure",
        run=row.run_count,
        cgroup=cgroup_name(row.uuid),
        details={"network": bool(row.interfaces)},
    )
    before = row

    def store() -> None:
        nonlocal row
        row = context.store.update(
            row.uuid, desired=State.CONFIGURED.value, limits=limits_of.encode(limits), end=None
        )
        failpoint("configure.stored")

    # What the node has on the host, such as its bridge, stays while somebody makes use of it.
    with context.host_lock(shared=True):
        boot.write_facts(context.paths, row.uuid, facts)
        try:
            failpoint("configure.intent")
            facts = _acquire(context, row, descriptor, facts, progress, script_s, store)
            boot.write_facts(context.paths, row.uuid, facts)
        except BaseException as failure:
            _undo(context, before, row, facts, failure)
            raise
    return Observed(row, State.CONFIGURED, facts, None)


def _undo(context: Context, before: Row, row: Row, facts: Facts, failure: BaseException) -> None:
    noted = boot.read_facts(context.paths, row.uuid) or facts
    try:
        if row != before or row.desired != State.DEFINED.value:
            context.store.update(
                row.uuid, desired=State.DEFINED.value, limits=before.limits, end=before.end
            )
        release.everything(context, row, noted)
    except NativertError as e:
        # What is told is why configure failed; the next operation releases the rest.
        failure.add_note(str(e))


def _acquire(
    context: Context,
    row: Row,
    descriptor: Descriptor,
    facts: Facts,
    progress: Progress | None,
    script_s: float,
    store: Callable[[], None],
) -> Facts:
    sources = Sources(context, row)
    limits = limits_of.decode(row.limits) or limits_of.of_descriptor(descriptor)
    image = _image(context, row, descriptor, sources, progress)
    failpoint("configure.image")
    whole = descriptor.native.rootfs == "image"
    user = users.find(descriptor.native.user, image if whole and image else Path("/"))
    arguments = program.argv(descriptor, image)
    program.check(descriptor, arguments[0], image, sources.data)
    owner = (row.id_range + user.uid, row.id_range + user.gid)
    with step(row.name, "files"):
        _files(context, row, descriptor, sources, user, owner, image if whole else None)
    failpoint("configure.files")
    plan = _plan(context, row, descriptor, sources, image, owner)
    with step(row.name, "cgroup"):
        launcher = context.launcher
        launcher.ready()
        # Again: only now the controllers are known that the node's cgroups have got.
        context.driver.check(limits)
        cgroup = _cgroup(context, facts.cgroup)
        failpoint("configure.cgroup")
        # It is new: there are none yet.
        cgroup.apply(limits, since=Limits())
        failpoint("configure.limits")
    entry = cgroup.entry()
    plan = plan._replace(
        cgroup={
            "tasks": list(entry.tasks),
            "into": entry.into,
            "oom": entry.oom,
            "peak": entry.peak,
            "cpu": entry.cpu,
            "pids": entry.pids,
        }
    )
    with step(row.name, "sandbox"):
        # The commit waits for the disk while the launcher works: a crash of ours is settled by
        # the intent, whichever came first.
        created = launcher.create(plan, meanwhile=store)
    try:
        failpoint("configure.init")
        details: dict[str, object] = {
            "network": bool(row.interfaces),
            "argv": arguments,
            "user": list(user),
            "rlimits": program.rlimits(descriptor, created.rlimits),
        }
        facts = msgspec.structs.replace(
            facts,
            init_pid=created.pid,
            init_start=process.start_time(created.pid),
            launcher_pid=created.launcher,
            details=details,
        )
        if row.interfaces or descriptor.script:
            # Else they are written at once, with the state.
            boot.write_facts(context.paths, row.uuid, facts)
        failpoint("configure.init-noted")
        if row.interfaces and created.network is not None:
            facts = _network(context, row, descriptor, facts, created.network)
    finally:
        os.close(created.pidfd)
        if created.network is not None:
            os.close(created.network)
    if descriptor.script:
        execute.script(context, row, descriptor, facts, [root.SCRIPT], limit_s=script_s)
    failpoint("configure.script")
    return msgspec.structs.replace(facts, state=State.CONFIGURED.value, intent=None)


def _cgroup(context: Context, name: str) -> Cgroup:
    try:
        return context.driver.create(name)
    except FileNotFoundError:
        # Another command's gc has removed the node's own since this one prepared it.
        context.driver.prepare()
        return context.driver.create(name)


def _image(
    context: Context,
    row: Row,
    descriptor: Descriptor,
    sources: Sources,
    progress: Progress | None,
) -> Path | None:
    image = descriptor.image
    if image is None:
        return None
    with step(row.name, "image", Code.IMAGE):
        context.os.make_dir(sources.image.parent, mode=0o700)
        # What an earlier configure left may be of another content by now.
        context.os.remove_tree(sources.image)
        unpacked = context.images.prepare(
            image.uri,
            checksum=image.checksum,
            format=image.format,
            rootfs=descriptor.native.rootfs == "image",
            into=sources.image,
            progress=progress,
        )
    return unpacked.path


def _files(
    context: Context,
    row: Row,
    descriptor: Descriptor,
    sources: Sources,
    user: users.User,
    owner: tuple[int, int],
    whole: Path | None,
) -> None:
    host = context.os
    host.make_dir(sources.run / "root", mode=0o700)
    host.make_dir(sources.data.parent, mode=0o700)
    if not host.exists(sources.data):
        host.make_dir(sources.data, mode=0o750, owner=owner)
    elif not stat.S_ISDIR((there := os.lstat(sources.data)).st_mode):
        # A mount would follow a link.
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(sources.data))
    elif there.st_uid != owner[0]:
        # Defined again with another user: the data stays the application's.
        host.chown_tree(sources.data, owner)
    host.make_dir(sources.log, mode=0o700)
    host.make_dir(sources.etc, mode=0o755)
    hostname = _hostname(row, descriptor)
    hosts = f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{hostname}\n"
    if row.interfaces:
        hosts = hosts.replace("127.0.1.1", row.interfaces[0].address)
    _place(sources.etc / "hosts", hosts.encode())
    _place(sources.etc / "hostname", f"{hostname}\n".encode())
    if descriptor.native.network.mode == "host":
        with open("/etc/resolv.conf", "rb") as file:
            _place(sources.etc / "resolv.conf", file.read())
    elif row.interfaces:
        _place(sources.etc / "resolv.conf", context.network.resolver().encode())
    if not user.known:
        _place(sources.etc / "passwd", users.passwd_with(user, whole or Path("/")))
    lower = root.lower_etc(whole)
    if whole is None and lower is not None:
        sources.hidden = etc.hidden(context.paths.run / "etc", lower)
    native = descriptor.native
    mounts = [(mount.target, os.path.isdir(mount.source)) for mount in native.mounts]
    mounts += [(tmpfs.target, True) for tmpfs in native.tmpfs_mounts()]
    etc.place_mounts(sources.etc, lower, mounts)
    if descriptor.script:
        script = descriptor.script
        if not script.startswith("#!"):
            script = f"#!/bin/sh\n{script}"
        _place(sources.script, script.encode(), mode=0o555)


def _place(path: Path, data: bytes, *, mode: int = 0o444) -> None:
    # In a directory that is ours and new: nobody reads it before init is started.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.write(fd, data)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _hostname(row: Row, descriptor: Descriptor) -> str:
    # sethostname(2) takes 64 bytes; a name may have "_", a host name may not.
    return descriptor.native.hostname or row.name.replace("_", "-")[:63].strip("-.")


def _plan(
    context: Context,
    row: Row,
    descriptor: Descriptor,
    sources: Sources,
    image: Path | None,
    owner: tuple[int, int],
) -> Any:
    native = descriptor.native
    steps = root.steps(
        descriptor,
        root.Sources(
            data=sources.data,
            etc=sources.etc,
            hidden=sources.hidden,
            image=image,
            script=sources.script if descriptor.script else None,
            owner=owner,
        ),
    )
    return Sandbox(
        instance=row.uuid,
        directory=str(sources.run),
        log={
            "directory": str(sources.log),
            "max_bytes": native.logs.max_bytes,
            "files": native.logs.files,
        },
        hostname=_hostname(row, descriptor),
        id_base=row.id_range,
        id_count=users.ID_COUNT,
        network=native.network.mode != "host",
        root=steps,
        shm_bytes=root.SHM_BYTES,
        cgroup={},
        seccomp=str(context.seccomp),
    )


def _network(context: Context, row: Row, descriptor: Descriptor, facts: Facts, netns: int) -> Facts:
    network = context.network
    requests = interface_requests(context, row, descriptor)
    with step(row.name, "network", Code.NETWORK):
        network.prepare()
        _wait_gone(context, requests)
        attached = network.attach(netns, requests)
    failpoint("configure.links")
    facts = msgspec.structs.replace(
        facts,
        links=release.noted(attached),
        netns_inode=os.fstat(netns).st_ino,
    )
    ports = descriptor.native.ports()
    if ports:
        # In the facts first: what is claimed and published after a crash is known to go.
        facts = msgspec.structs.replace(
            facts,
            ports=tuple(
                PortFacts(p.host_ip, p.host_port, p.instance_port, p.protocol) for p in ports
            ),
        )
        boot.write_facts(context.paths, row.uuid, facts)
        failpoint("configure.ports-noted")
        claims = [PortClaim(p.host_ip, p.host_port, p.protocol) for p in ports]
        context.claims.claim_ports(context.identity.id, row.uuid, claims)
        failpoint("configure.ports-claimed")
        with step(row.name, "ports", Code.NETWORK):
            network.publish(
                published_address(row, descriptor),
                [PortRequest(p.host_ip, p.host_port, p.instance_port, p.protocol) for p in ports],
            )
        failpoint("configure.ports")
    else:
        boot.write_facts(context.paths, row.uuid, facts)
    return facts


def _wait_gone(context: Context, requests: list[InterfaceRequest]) -> None:
    # The veth of the configure before may still be on its way out (15-60 ms).
    old = [Attached(r.name, r.link, 0, "", r.address) for r in requests]
    deadline = time.monotonic() + 5.0
    while not context.network.gone(old):
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "the old link is not gone", old[0].link)
        context.network.detach(old)
        time.sleep(0.005)
