"""What is true of this boot only: pids, start times, inodes, how the application ended.

Written without fsync: it survives every process and is worthless after a
reboot, which the boot id in each file shows.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from nativert.fdu.known import known
from nativert.store import files
from nativert.store.paths import Paths

FACTS = "boot.json"
EXIT = "exit.json"
# What was begun on a running application: a symbolic link that leads nowhere and has it in its
# target. One call makes it, where new facts are five. That of a stop stays until the next run.
INTENT: Final = "intent"
# Those in which an instance has something of this boot. Another word is damage.
_STATES: Final = "^(DEFINED|CONFIGURED|RUNNING|PAUSED|SCALING)$"


class LinkFacts(msgspec.Struct, frozen=True):
    """One attached interface: its name inside, the host's link, and the link's ifindex."""

    name: str
    link: str
    index: int
    mac: str
    address: str
    # UUID of the virtual network that it is on, empty where that is the node's own; and whether it
    # was taken off it on request.
    network: str = ""
    connected: bool = True


class PortFacts(msgspec.Struct, frozen=True):
    """One published port."""

    host_ip: str | None
    host_port: int
    instance_port: int
    protocol: str


StopReason = Literal["stop", "force", "health", "dependency", "shutdown", "migrate"]


class StopFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A stop that was begun: why, by which signal, and whether the grace ran out.

    Times in seconds since the epoch. `note` is the part of the sentence that whoever stops
    it knows: which check failed, which instance it depends on.
    """

    why: StopReason
    signal: int
    at: float
    grace_s: float = 0.0
    killed_at: float | None = None
    note: str = ""

    @property
    def by_operator(self) -> bool:
        """Whether it ends the wish that the application runs; any other end does not."""
        return self.why in ("stop", "force")


class Intent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was begun on the application of *run*: its stop, or other limits.

    `limits` are those before, as the store has them.
    """

    run: int
    stop: StopFacts | None = None
    limits: str | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the runtime knows of one configured instance.

    `init_start` is in clock ticks since boot, `started_at` in seconds since the epoch.
    `intent` names the operation that was begun and not finished; `stop` and `limits` come from
    the `Intent` where there is one.
    """

    boot_id: str
    state: Annotated[str, msgspec.Meta(pattern=_STATES)]
    run: int = 0
    init_pid: int | None = None
    init_start: int | None = None
    launcher_pid: int | None = None
    intent: str | None = None
    started_at: float | None = None
    netns_inode: int | None = None
    links: tuple[LinkFacts, ...] = ()
    ports: tuple[PortFacts, ...] = ()
    cgroup: str = ""
    details: dict[str, object] = {}
    stop: StopFacts | None = None
    limits: str | None = None


class Asked(msgspec.Struct, frozen=True):
    """A signal that came by init's verb; `at` in seconds since the epoch."""

    signal: int
    at: float


class ExecError(msgspec.Struct, frozen=True):
    """The step before or at execve(2) that failed in the application's child."""

    step: str
    errno: int
    path: str | None = None


class ExitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How the application of one run ended, as its init saw it.

    `start` is in clock ticks since boot, the other times in seconds since the epoch;
    `cause` is one of exited, signal, oom, exec-failed; unknown where nobody could tell.
    Of this run alone: `asked`, the last signal that init was asked to send; `pids_events`,
    how often fork was refused by the pids limit; `oom_events`, how often the cgroup was out
    of memory at its own limit (cgroup2). None where init does not know.
    """

    run: int
    boot_id: str
    pid: int
    start: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    oom_kills: int = 0
    peak_bytes: int | None = None
    cpu_ns: int | None = None
    cause: str
    error: ExecError | None = None
    asked: Asked | None = None
    pids_events: int | None = None
    oom_events: int | None = None


@functools.cache
def boot_id() -> str:
    """Return the id of this boot of the kernel; see random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_facts(paths: Paths, uuid: str, facts: Facts) -> None:
    """Replace the facts of *uuid*; the caller holds the instance's lock.

    The directory is made when it is not there.
    """
    directory = paths.instance_run(uuid)
    path = f"{directory}/{FACTS}"
    data = msgspec.json.encode(facts)
    try:
        files.replace(path, data)
    except FileNotFoundError:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        files.replace(path, data)


def read_facts(paths: Paths, uuid: str) -> Facts | None:
    """Return the facts of *uuid*, or None if this boot has none.

    A file that cannot be decoded is kept aside as boot.json.corrupt.
    """
    directory = paths.instance_run(uuid)
    facts = _read(f"{directory}/{FACTS}", Facts, files.read_replaced)
    if facts is None or facts.boot_id != boot_id():
        return None
    begun = _read_intent(f"{directory}/{INTENT}") if facts.state == "RUNNING" else None
    if begun is None or begun.run != facts.run:
        return facts
    if begun.stop is not None:
        return msgspec.structs.replace(facts, intent="stop", stop=begun.stop)
    return msgspec.structs.replace(facts, state="SCALING", limits=begun.limits)


def begin(paths: Paths, uuid: str, intent: Intent) -> None:
    """Have everybody see what is begun on a RUNNING instance; the caller holds the lock.

    Until `finish`, or until its facts say that the run has ended.
    """
    path = f"{paths.instance_run(uuid)}/{INTENT}"
    target = msgspec.json.encode(intent)
    try:
        os.symlink(target, path)
    except FileExistsError:
        # Of a run that has ended, or of who did not live to finish.
        os.unlink(path)
        os.symlink(target, path)
    except OSError as e:
        if e.errno != errno.ENAMETOOLONG:
            raise
        files.replace(path, target)  # The limits of some sixty devices.


def finish(paths: Paths, uuid: str) -> None:
    """End what `begin` began; safe twice."""
    try:
        os.unlink(f"{paths.instance_run(uuid)}/{INTENT}")
    except FileNotFoundError:
        pass


def _read_intent(path: str) -> Intent | None:
    try:
        data = os.fsencode(os.readlink(path))
    except FileNotFoundError:
        return None
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return _read(path, Intent, files.decode)
    try:
        return msgspec.json.decode(data, type=known(Intent))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # Not ours: whatever was begun is found by what it has changed.


def read_exit(paths: Paths, uuid: str) -> ExitFacts | None:
    """Return how the last run of *uuid* ended, or None if this boot has no such evidence.

    It may belong to an earlier run than the present one: compare `run`.
    """
    # Its init renames it into a place that is free: there is no moment without one of them.
    facts = _read(f"{paths.instance_run(uuid)}/{EXIT}", ExitFacts, files.decode)
    return facts if facts is not None and facts.boot_id == boot_id() else None


_T = TypeVar("_T", Facts, Intent, ExitFacts)


def _read(path: str, kind: type[_T], decode: Callable[..., _T]) -> _T | None:
    try:
        return decode(path, kind, limit_bytes=1 << 20)
    except FileNotFoundError:
        return None
    except files.DamagedError:
        # What cannot be read must not stop the instance from being cleaned up.
        try:
            files.put_aside(Path(path))
        except FileNotFoundError:
            pass  # its writer removed it, or another reader put it aside
        return None
