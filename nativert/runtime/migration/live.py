"""migration_kind LIVE: the process itself travels, as images that CRIU makes and takes.

At the source the application is frozen by its cgroup, dumped, and left frozen: until the commit a
thaw is all that it takes for it to go on. At the destination CRIU puts it into the namespaces that
configure has made, where init takes it for the application.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from nativert.errors import Code, NativertError, StepError
from nativert.fdu.states import State
from nativert.isolation.criu import images, program
from nativert.launcher.client import ReportedError
from nativert.runtime import pause
from nativert.runtime import run as runs
from nativert.runtime.context import Context, descriptor_of
from nativert.runtime.failpoints import failpoint
from nativert.runtime.migration import preflight
from nativert.runtime.migration.parcel import CHECKPOINT
from nativert.runtime.observe import Observed, settle_here
from nativert.store.durable import Row

_IMAGES: Final = "images"
_ABOUT: Final = "about.json"
_DUMP_TIMEOUT_S: Final = 600.0
_AGAIN_S: Final = 0.05
_LAST_PID: Final = "/proc/sys/kernel/ns_last_pid"
# proc(5): what child.c has given up must not come back with images that say otherwise.
_CONFINED: Final = {
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "Threads": "1",
    **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16),
}


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What init must know of the images: the process's number, and the inodes of its pipes."""

    pid: int
    stdout: int
    stderr: int


def wanted(row: Row) -> bool:
    """Whether an instance moves as it runs."""
    return descriptor_of(row.descriptor, row.name).migration_kind == "LIVE"


def _directory(context: Context, uuid: str) -> Path:
    return context.paths.instance_lib(uuid) / CHECKPOINT


def forget(context: Context, uuid: str) -> None:
    """Remove the images of an instance."""
    context.os.remove_tree(_directory(context, uuid))


def waits(context: Context, uuid: str) -> bool:
    """Whether images of an instance have come, which are not restored yet."""
    return (_directory(context, uuid) / _ABOUT).exists()


# ---------------------------------------------------------------- source


def dump(context: Context, here: Observed) -> None:
    """Freeze the application and write its images; NativertError, and it is for `go_on` then."""
    uuid = here.row.uuid
    frozen = pause.pause(context, here)
    failpoint("live.frozen")
    preflight.still(context, frozen)
    forget(context, uuid)
    directory = _directory(context, uuid)
    directory.mkdir(mode=0o700)
    (directory / _IMAGES).mkdir(mode=0o700)
    try:
        about = _dump(context, here.row, directory / _IMAGES)
    except ReportedError as e:
        raise preflight.refused(str(e)) from e
    except (OSError, EOFError) as e:
        raise StepError(here.row.name, "dump", e, code=Code.MIGRATE) from e
    failpoint("live.dumped")
    # Last: with it the images are whole.
    (directory / _ABOUT).write_bytes(msgspec.json.encode(about))


def _dump(context: Context, row: Row, directory: Path) -> About:
    criu = program.installed()
    cgroup = context.cgroup(row.uuid).entry().into
    if cgroup is None:
        raise preflight.refused("it has no cgroup of v2")
    with contextlib.ExitStack() as opened:
        channel = opened.enter_context(context.init(row.uuid))
        status, _ = channel.call({"verb": "status"})
        about = _about(status)
        fds = []
        for path in (str(directory), cgroup):
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            opened.callback(os.close, fds[-1])
        command = program.dump_command(criu, about.pid)
        channel.call({"verb": "dump", "criu": command}, fds)
        failpoint("live.dumping")
        ended, _ = channel.receive(_DUMP_TIMEOUT_S)
    if ended.get("code") != 0:
        raise preflight.refused(f"CRIU: {program.reason(directory, 'dump')}")
    (directory / program.LOG["dump"]).unlink()
    return about


def _about(status: dict[str, Any]) -> About:
    # An end of a pipe that the application has closed is restored by nobody.
    return About(
        pid=status["pid"], stdout=status.get("stdout") or 0, stderr=status.get("stderr") or 0
    )


def go_on(context: Context, here: Observed) -> Observed:
    """Let what was frozen for a move go on as if nothing had happened; StepError if it does not.

    Who moved it may be dead, and CRIU still at work: it leaves the application frozen.
    """
    deadline = time.monotonic() + _DUMP_TIMEOUT_S
    # Meanwhile its cgroup is not frozen: what is traced stands still without that.
    while _dumps(context, here.row):
        if time.monotonic() > deadline:
            late = TimeoutError(110, "CRIU does not end")
            raise StepError(here.row.name, "dump", late, code=Code.MIGRATE)
        time.sleep(_AGAIN_S)
    here = settle_here(context, here.row)
    if here.state is State.PAUSED:
        here = pause.resume(context, here)
        failpoint("live.thawed")
    forget(context, here.row.uuid)
    return here


def _dumps(context: Context, row: Row) -> bool:
    try:
        with context.init(row.uuid) as channel:
            return bool(channel.call({"verb": "status"})[0].get("dumps"))
    except (OSError, EOFError, ReportedError):
        return False


# ---------------------------------------------------------------- destination


def restore(context: Context, here: Observed) -> Observed:
    """Put the application back, once; NativertError where that fails, and nothing of it is left.

    What has been restored and has ended since is not restored again: its data are newer than
    its images.
    """
    if here.end is not None:
        if here.end.reason == "exec-failed":
            raise NativertError(f"{here.row.name}: {here.end.reason}", code=Code.MIGRATE)
        return here
    row = here.row
    directory = _directory(context, row.uuid)
    about = msgspec.json.decode((directory / _ABOUT).read_bytes(), type=About)
    images.join_namespaces(directory / _IMAGES)
    env: dict[str, str] | None = None if row.env is None else msgspec.json.decode(row.env)
    command = program.restore_command(program.installed(), about.stdout, about.stderr)
    with contextlib.ExitStack() as opened:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        found = os.open(directory / _IMAGES, flags)
        opened.callback(os.close, found)
        last_pid = os.open(_LAST_PID, os.O_WRONLY | os.O_CLOEXEC)
        opened.callback(os.close, last_pid)
        try:
            after = runs.run(
                context,
                here,
                env=env,
                again={"wanted": State.RUNNING.value},
                restored=runs.Restored(command, about.pid, found, last_pid),
            )
        except NativertError as e:
            said = program.reason(directory / _IMAGES, "restore")
            raise NativertError(f"{e.message}: {said}", code=e.code, hint=e.hint) from e
    if loose := _loose(after):
        runs.force(context, after)
        raise NativertError(f"{row.name}: what was restored has {loose}", code=Code.MIGRATE)
    return after


def _loose(here: Observed) -> str:
    """Return what a restored application has that it must not have."""
    facts = here.facts
    if facts is None:
        raise AssertionError("what runs has facts")
    try:
        text = Path(f"/proc/{facts.details['pid']}/status").read_text()
    except FileNotFoundError:
        return ""  # It has ended, which is nobody's fault.
    found = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    if found["State"].startswith("Z"):
        return ""  # It is about to have ended.
    user: Any = facts.details["user"]
    uid = str(here.row.id_range + user[0])
    right = _CONFINED | {"Uid": "\t".join([uid] * 4)}
    return ", ".join(f"{key} {found.get(key)}" for key in right if found.get(key) != right[key])
