"""Whether an application can be moved as it runs: asked at both nodes before anything is stopped.

CRIU itself is asked too, by its own check; what is here are the reasons that it would not give, or
only when the application is frozen already.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Final

import msgspec

from nativert.errors import Code, NativertError
from nativert.isolation.criu import program
from nativert.isolation.criu.program import Criu
from nativert.runtime.context import Context, descriptor_of
from nativert.runtime.diagnosis_root import Root
from nativert.runtime.observe import Observed

_PIECE: Final = 1 << 20
_COLD: Final = "with migration_kind: COLD it is stopped and started again"
# What its loader reads beside the libraries; see ld.so(8).
_OF_THE_LOADER: Final = ("/etc/ld.so.cache", "/etc/ld.so.preload")
# The PID namespace is the host's, and CRIU, as the host's root, makes the first process; the others
# would be made by that one, which is in the instance's user namespace by then (clone(2), set_tid).
_NUMBERS: Final = "the kernel lets CRIU choose the number of the first thread only"
# SO_SNDBUFFORCE, by which criu 3.17 sets the buffers of any socket, is the same case (socket(7)).
_BUFFERS: Final = "the kernel lets nobody in a user namespace restore its buffers"
_RELEASE: Final = re.compile(r"(\d+)\.(\d+)")
_LAST_PID: Final = Path("/proc/sys/kernel/ns_last_pid")


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What the destination must have; `files` are mapped: path inside, SHA-256."""

    criu: str
    machine: str
    kernel: str
    cpu: tuple[str, ...]
    files: dict[str, str]


def offer(context: Context, here: Observed) -> Live:
    """Return what the application needs elsewhere; NativertError(MIGRATE) where it cannot leave."""
    criu = _machine(context)
    root, pid = _root(here), _pid(here)
    _shown(root, criu)
    still(context, here)
    return Live(
        criu=criu.version,
        machine=platform.machine(),
        kernel=platform.release(),
        cpu=_cpu(),
        files={path: _sum(root, path) for path in _mapped(pid)},
    )


def accept(context: Context, here: Observed, live: Live) -> None:
    """Refuse what could not be restored in a configured instance here; NativertError(MIGRATE)."""
    criu = _machine(context)
    if criu.version != live.criu:
        raise refused(f"criu is {criu.version} here and {live.criu} there")
    if platform.machine() != live.machine:
        raise refused(f"the machine is {platform.machine()} here and {live.machine} there")
    if _release(platform.release()) < _release(live.kernel):
        raise refused(f"Linux is {platform.release()} here and {live.kernel} there")
    if lacking := sorted({*live.cpu} - {*_cpu()}):
        raise refused(f"the CPU here lacks {' '.join(lacking[:8])}, which the other one has")
    root = _root(here)
    _shown(root, criu)
    for path, wanted in live.files.items():
        try:
            found = _sum(root, path)
        except OSError as e:
            raise refused(f"{path} is in use there, and here: {e.strerror}") from e
        if found != wanted:
            raise refused(f"{path} is in use there, and is another one here")


def still(context: Context, here: Observed) -> None:
    """Refuse an application that CRIU could not put back; asked again when it is frozen."""
    pid = _pid(here)
    others = [other for other in context.cgroup(here.row.uuid).pids() if other != pid]
    if others:
        raise refused(f"it has {len(others) + 1} processes, and one can be moved: {_NUMBERS}")
    threads = len(os.listdir(f"/proc/{pid}/task"))
    if threads != 1:
        raise refused(f"it has {threads} threads, and one can be moved: {_NUMBERS}")
    if number := _socket(pid):
        raise refused(f"its descriptor {number} is a socket: {_BUFFERS}")
    root = _root(here)
    tmpfs = descriptor_of(here.row.descriptor, here.row.name).native.tmpfs_mounts()
    for target in ("/tmp", "/run", "/dev/shm", *(one.target for one in tmpfs)):
        with root.found(target) as fd:
            if names := os.listdir(f"/proc/self/fd/{fd}"):
                raise refused(f"{target}/{names[0]} would stay behind: only /data travels")


def _socket(pid: int) -> str | None:
    """Return the number of a descriptor that is a socket."""
    directory = f"/proc/{pid}/fd"
    for number in sorted(os.listdir(directory), key=int):
        with contextlib.suppress(FileNotFoundError):  # It has been closed meanwhile.
            if os.readlink(f"{directory}/{number}").startswith("socket:"):
                return number
    return None


def refused(reason: str) -> NativertError:
    """Return why it cannot move as it runs."""
    return NativertError(f"cannot move it as it runs: {reason}", code=Code.MIGRATE, hint=_COLD)


def _machine(context: Context) -> Criu:
    try:
        criu = program.installed()
        program.check(criu)
    except NativertError as e:
        hint = e.hint or _COLD
        message = f"cannot move it as it runs: {e.message}"
        raise NativertError(message, code=Code.MIGRATE, hint=hint) from e
    if context.driver.mode != "v2":
        raise refused(f"cgroups are {context.driver.mode} here, and CRIU freezes by those of v2")
    if not _LAST_PID.exists():
        raise refused(f"Linux {platform.release()} has no {_LAST_PID}")
    return criu


def _shown(root: Root, criu: Criu) -> None:
    """Refuse an instance whose files would be executed as root in the place of the host's."""
    for path in program.files(criu):
        real = os.path.realpath(path)
        try:
            with root.found(path) as fd:
                same = os.path.samestat(os.fstat(fd), os.stat(real))
        except OSError:
            same = False
        if not same:
            raise refused(f"its root file system does not show the host's {path} to CRIU")
    for path in _OF_THE_LOADER:
        if _content(root, path) != (Path(path).read_bytes() if os.path.exists(path) else None):
            raise refused(f"its {path} is not the host's")


def _content(root: Root, path: str) -> bytes | None:
    try:
        with root.opened(path) as fd, open(os.dup(fd), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _root(here: Observed) -> Root:
    facts = here.facts
    root = None if facts is None else Root.of_init(facts.init_pid, facts.init_start)
    if root is None:
        raise refused("its init is gone")
    return root


def _pid(here: Observed) -> int:
    pid = None if here.facts is None else here.facts.details.get("pid")
    if not isinstance(pid, int):
        raise refused("it does not run")
    return pid


def _mapped(pid: int) -> list[str]:
    """Return the files that a process has mapped, but those that travel or were removed."""
    paths = set()
    for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        path = fields[5] if len(fields) == 6 else ""
        if path.startswith("/") and not path.endswith(" (deleted)"):
            paths.add(path)
    return sorted(path for path in paths if not path.startswith("/data/"))


def _sum(root: Root, path: str) -> str:
    found = hashlib.sha256()
    with root.opened(path) as fd, open(os.dup(fd), "rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def _cpu() -> tuple[str, ...]:
    """Return what the CPU can; programs and their libraries choose by it at their start."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(value.split()))
    return ()


def _release(text: str) -> tuple[int, int]:
    found = _RELEASE.match(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
