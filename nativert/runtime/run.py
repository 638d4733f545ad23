"""run_fdu and stop_fdu: the application starts inside, and ends."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from nativert.errors import Code, NativertError, StepError
from nativert.fdu.states import Event, State
from nativert.isolation import process
from nativert.isolation.cgroups.driver import Cgroup
from nativert.launcher.client import Channel, ReportedError
from nativert.launcher.protocol import Message
from nativert.runtime import execute, program, verdict
from nativert.runtime.context import INIT_TIMEOUT_S, Context, descriptor_of
from nativert.runtime.failpoints import failpoint
from nativert.runtime.observe import (
    NOT_WANTED,
    RESTORE_TIMEOUT_S,
    Observed,
    application_ended,
    ended_as_told,
    observe,
    settle,
)
from nativert.runtime.users import User
from nativert.store import boot
from nativert.store.boot import Facts, StopFacts
from nativert.store.disk import Saving
from nativert.store.durable import Changes, Row

# After SIGKILL a process ends as soon as it leaves the kernel; more than this is a stuck one.
_KILL_TIMEOUT_S = 10.0
_KILL_ALL: Final[dict[str, object]] = {"signal": int(signal.SIGKILL), "all": True}


class Restored(NamedTuple):
    """What CRIU makes the application of, in the place of a program that is executed.

    `pid` is its number in the instance; `images` is their directory, `last_pid` the host's
    ns_last_pid, both open.
    """

    command: list[str]
    pid: int
    images: int
    last_pid: int


def run(
    context: Context,
    seen: Observed,
    *,
    env: Mapping[str, str] | None = None,
    again: Changes | None = None,
    restored: Restored | None = None,
) -> Observed:
    """Start the application; the caller holds the lock and has checked the edge.

    *again* is what is noted where it is not an operator who starts it.
    """
    row, facts = seen.row, _facts(seen)
    descriptor = descriptor_of(row.descriptor, row.name)
    user = User(*facts.details["user"])  # type: ignore[misc]
    arguments: Any = facts.details["argv"]
    limits: Any = facts.details["rlimits"]
    plan = program.build(descriptor, arguments, user, limits, env)
    number = facts.run + 1
    # Facts of a new run do not tell the end of the one before any more.
    context.store.flush_ends()
    intended = msgspec.structs.replace(facts, run=number, intent="run", stop=None)
    boot.write_facts(context.paths, row.uuid, intended)
    failpoint("run.intent")
    message: Message = {"verb": "run", "run": number, "program": plan._asdict(), "follow": True}
    sent: tuple[int, ...] = ()
    if restored is not None:
        message = {"verb": "restore", "run": number, "follow": True, "criu": restored.command}
        message |= {"pid": restored.pid, "uid": plan.uid, "gid": plan.gid}
        message |= {"oom_score_adj": plan.oom_score_adj}
        sent = (restored.images, restored.last_pid)

    changes: Changes = {
        "desired": State.RUNNING.value,
        "run_count": number,
        "end": None,
        **(_asked(env) if again is None else again),
    }

    def store() -> None:
        nonlocal row
        row = context.store.update(row.uuid, **changes)
        # What was begun on the run before; its stop has left it.
        boot.finish(context.paths, row.uuid)

    try:
        timeout_s = INIT_TIMEOUT_S if restored is None else RESTORE_TIMEOUT_S
        with context.kept_init(row.uuid, timeout_s=timeout_s) as channel:
            # The commit waits for the disk while init works.
            answer, fds = channel.call(message, sent, meanwhile=store)
            channel.follows = True
    except NativertError:
        # What cannot be noted must not run: nobody would know of it after a reboot.
        _take_back(context, seen.row, facts, number)
        raise
    except ReportedError as e:
        _withdraw(context, row.uuid, facts, number)
        found = execute.found(context, row, None if restored else facts, plan, e)
        error = execute.refusal(row, found)
        end = verdict.encode(verdict.exec_failed(found))
        context.store.update(
            row.uuid,
            desired=State.CONFIGURED.value,
            wanted=seen.row.wanted,
            end=end,
            event=("exec-failed", f'{{"state":"CONFIGURED","end":{end}}}'),
        )
        raise error from e
    except (OSError, EOFError) as e:
        # Whether it was started is init's to say: the next look settles it.
        raise StepError(row.name, "run", e, code=Code.RUN) from e
    try:
        failpoint("run.started")
        known = {"pid": _host_pid(fds[0]), "start": answer["start"], "env": dict(env or {})}
        running = msgspec.structs.replace(
            intended,
            state=State.RUNNING.value,
            intent=None,
            started_at=answer["started_at"],
            details=facts.details | known,
        )
        boot.write_facts(context.paths, row.uuid, running)
        failpoint("run.noted")
    except BaseException:
        _take_back(context, seen.row, facts, number)
        raise
    return Observed(row, State.RUNNING, running, None)


def _asked(env: Mapping[str, str] | None) -> Changes:
    return {
        "wanted": State.RUNNING.value,
        "env": msgspec.json.encode(env).decode() if env else None,
        "restarts": 0,
        "retry": None,
    }


def _take_back(context: Context, before: Row, facts: Facts, number: int) -> None:
    uuid = before.uuid
    try:
        with context.init(uuid) as channel:
            status, _ = channel.call({"verb": "status", "follow": True})
            if status["state"] != "idle" and not _signal(channel, _KILL_ALL):
                _ended(channel, _KILL_TIMEOUT_S)
        _withdraw(context, uuid, facts, number)
        context.store.update(uuid, desired=State.CONFIGURED.value, wanted=before.wanted)
    except (OSError, EOFError, NativertError):
        pass  # Told is why the run failed; what stands now is settled by the next look.


def _host_pid(pidfd: int) -> int:
    try:
        return process.host_pid(pidfd)
    finally:
        os.close(pidfd)


def _facts(seen: Observed) -> Facts:
    if seen.facts is None:
        raise AssertionError(f"{seen.state} without facts")
    return seen.facts


def _withdraw(context: Context, uuid: str, facts: Facts, number: int) -> None:
    # The number is used up: an end of that run must never be taken for a later one's.
    boot.write_facts(context.paths, uuid, msgspec.structs.replace(facts, run=number, intent=None))


def stop(
    context: Context,
    seen: Observed,
    *,
    why: boot.StopReason = "stop",
    note: str = "",
    instead: tuple[int, float] | None = None,
) -> Observed:
    """Signal, grace, kill of everything; the caller holds the lock.

    *why* and *note* (which check, which dependency) are told in the verdict; *instead* has
    another signal and grace in seconds than the descriptor.
    """
    asked = descriptor_of(seen.row.descriptor, seen.row.name).native.stop
    number, grace_s = instead or (asked.signal_number, asked.grace_s)
    stop = StopFacts(why=why, signal=number, at=time.time(), grace_s=grace_s, note=note)
    return _end(context, seen, stop)


def force(context: Context, seen: Observed) -> Observed:
    """Kill everything at once, a frozen application too: kill first, then thaw."""
    try:
        return _end(context, seen, StopFacts(why="force", signal=signal.SIGKILL, at=time.time()))
    except StepError:
        # With its init gone it has ended too; what is left of it goes here.
        after = settle(context, context.store.get(seen.row.uuid))
        if after.state in (State.RUNNING, State.PAUSED):
            raise
        return after


def _end(context: Context, seen: Observed, stop: StopFacts) -> Observed:
    row, facts = seen.row, _facts(seen)
    stopping = msgspec.structs.replace(facts, intent="stop", stop=stop)
    boot.begin(context.paths, row.uuid, boot.Intent(run=facts.run, stop=stop))
    failpoint("stop.intent")
    told: Message | None = None
    saving: Saving | None = None

    def wish() -> None:
        nonlocal row, saving
        # That it is not wanted any more survives a power cut; how it ended need not.
        if stop.by_operator:
            row = context.store.update(row.uuid, wait=False, **NOT_WANTED)
            saving = context.store.save()
        failpoint("stop.wished")

    def late() -> None:
        nonlocal stopping
        killed = msgspec.structs.replace(stop, killed_at=time.time())
        stopping = msgspec.structs.replace(stopping, stop=killed)
        try:
            boot.begin(context.paths, row.uuid, boot.Intent(run=facts.run, stop=killed))
        except OSError:
            pass  # Without room for it the verdict says less; it ends all the same.

    try:
        with context.kept_init(row.uuid) as channel:
            # A connection that follows may have the end in it at any moment, before an answer.
            if channel.follows or _follow(channel):
                told = _signal_and_wait(context.cgroup(row.uuid), channel, stop, wish, late)
    except (EOFError, ConnectionError, FileNotFoundError):
        pass  # Init is gone: what observe finds below.
    except (OSError, ReportedError) as e:
        raise StepError(row.name, "stop", e, code=Code.STOP) from e
    failpoint("stop.ended")
    after = None if told is None else ended_as_told(context, row, stopping, told)
    if after is None:
        after = observe(context, row)
    if after.event is Event.APPLICATION_ENDED:
        ended = application_ended(
            context,
            after,
            frozen=seen.state is State.PAUSED,
            soon=saving is not None and row.run_count == facts.run,
        )
        if saving is not None:
            _saved(row, saving)
        return ended
    if after.event is Event.INIT_LOST:
        raise StepError(row.name, "stop", OSError(errno.ESRCH, "its init is gone"), code=Code.STOP)
    raise StepError(
        row.name,
        "stop",
        TimeoutError(errno.ETIMEDOUT, f"still there {_KILL_TIMEOUT_S:.0f} s after SIGKILL"),
        code=Code.STOP,
        hint="a process waits in the kernel (state D): a disk or a network file system hangs",
    )


def _saved(row: Row, saving: Saving) -> None:
    try:
        saving.wait()
    except OSError as e:
        raise StepError(row.name, "stop", e, code=Code.STOP) from e


def _follow(channel: Channel) -> bool:
    status, _ = channel.call({"verb": "status", "follow": True})
    return bool(status["state"] != "idle")


def _signal_and_wait(
    cgroup: Cgroup,
    channel: Channel,
    stop: StopFacts,
    wish: Callable[[], None],
    late: Callable[[], None],
) -> Message | None:
    """Return what init tells of the end, None if it does not come.

    *wish* is called while the first signal does its work, *late* when the grace has run out.
    """
    deadline = time.monotonic() + stop.grace_s
    if stop.signal != signal.SIGKILL:
        try:
            if told := _signal(channel, {"signal": stop.signal}, meanwhile=wish):
                return told
        except ReportedError as e:
            if e.errno != errno.ESRCH:
                raise
        if told := _ended(channel, deadline - time.monotonic()):
            return told
        late()
    channel.sock.settimeout(_KILL_TIMEOUT_S)
    if told := _signal(
        channel, _KILL_ALL, meanwhile=wish if stop.signal == signal.SIGKILL else None
    ):
        return told
    # v1: where it is frozen the signal takes effect at the thaw; v2: it has already.
    cgroup.thaw()
    told = _ended(channel, _KILL_TIMEOUT_S)
    if told is None:
        channel.close()  # Its end, which comes some day, must not meet a later call.
    return told


def _signal(
    channel: Channel,
    message: dict[str, object],
    *,
    meanwhile: Callable[[], None] | None = None,
) -> Message | None:
    # The end, if that is what came: it may come before the answer.
    answer, _ = channel.call({"verb": "signal", **message}, meanwhile=meanwhile)
    return answer if answer.get("event") == "end" else None


def _ended(channel: Channel, timeout_s: float) -> Message | None:
    try:
        message, _ = channel.receive(max(timeout_s, 0.001))
    except TimeoutError:
        return None
    return message if message.get("event") == "end" else None


def send_signal(context: Context, seen: Observed, number: int) -> None:
    """Send one signal to the application's first process."""
    try:
        with context.init(seen.row.uuid) as channel:
            channel.call({"verb": "signal", "signal": number})
    except ReportedError as e:
        raise NativertError(f"{seen.row.name}: {e}", code=Code.STOP) from e
    except (OSError, EOFError) as e:
        raise StepError(seen.row.name, "kill", e, code=Code.STOP) from e
    if seen.state is State.PAUSED and number == signal.SIGKILL:
        context.cgroup(seen.row.uuid).thaw()


def follow(context: Context, seen: Observed, timeout_s: float | None) -> bool:
    """Wait until the application has ended or its init is gone; False after *timeout_s*."""
    try:
        with context.init(seen.row.uuid) as channel:
            status, _ = channel.call({"verb": "status", "follow": True})
            if status["state"] == "idle":
                return True
            channel.receive(None if timeout_s is None else max(timeout_s, 0.001))
    except TimeoutError:
        return False
    except (OSError, EOFError):
        pass  # Init has ended: so has the application.
    return True
