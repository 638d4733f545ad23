"""How an application ended, in one sentence, from what init and the kernel left behind.

A claim is made only where something tells: who sent a signal, whose memory it was, which
system call. docs/verdicts.md has every reason with its evidence.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from nativert.fdu.known import known
from nativert.runtime.views import End, Reason, Sender
from nativert.store.boot import ExitFacts, StopFacts

if TYPE_CHECKING:
    from nativert.isolation.cgroups.limits import Limits
    from nativert.runtime.diagnosis import Failure, Finding
    from nativert.runtime.diagnosis_kernel import Oom

_NOT_FOUND: Final = 127
_WHY: Final[dict[str, tuple[Reason, str]]] = {
    "stop": ("stopped", "stopped"),
    "force": ("stopped", "stopped by force"),
    "health": ("unhealthy", "stopped because its health check failed"),
    "dependency": ("dependency", "stopped because what it depends on failed"),
    "shutdown": ("node-shutdown", "stopped because the node was shut down"),
    "migrate": ("stopped", "stopped to be moved to another node"),
}


class Inquiry(Protocol):
    """What can be found out beside exit.json; each costs more than reading that."""

    def oom(self, ended: ExitFacts) -> Oom | None:
        """Return whose lack of memory the OOM killer acted on."""
        ...

    def system_call(self, ended: ExitFacts) -> str | None:
        """Return the name of the system call for which seccomp killed the application."""
        ...

    def unstarted(self, ended: ExitFacts) -> Finding | None:
        """Return what kept a program from coming up that ended with 127."""
        ...

    def never(self, failure: Failure) -> Finding:
        """Return why the application was not executed."""
        ...

    def init_fate(self) -> str:
        """Return how the instance's init ended, in words."""
        ...


def signal_name(number: int) -> str:
    """Return the name of a signal as signal(7) has it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _bytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def of_exit(
    facts: ExitFacts,
    *,
    stop: StopFacts | None,
    limits: Limits | None,
    inquire: Callable[[], Inquiry],
) -> End:
    """Return the end that exit.json tells; *stop* is the stop that was under way."""
    if facts.cause == "exec-failed":
        return never_ran(facts, inquire)
    if stop is not None and facts.ended_at is not None and facts.ended_at < stop.at:
        stop = None  # It had ended by itself before.
    end = End(
        reason="exited",
        message=f"exited with code {facts.exit_code}",
        exit_code=facts.exit_code,
        signal=None if facts.signal is None else signal_name(facts.signal),
        oom=facts.cause == "oom" or facts.oom_kills > 0,
        started_at=facts.started_at,
        ended_at=facts.ended_at,
        peak_bytes=facts.peak_bytes,
        cpu_s=None if facts.cpu_ns is None else facts.cpu_ns / 1e9,
        oom_kills=facts.oom_kills or None,
        pids_refused=facts.pids_events or None,
        pids_max=limits.pids_max if facts.pids_events and limits is not None else None,
    )
    if facts.cause == "unknown":
        end = _with(end, "exited", "ended, and nothing tells how")
    elif facts.signal is not None:
        end = _by_signal(end, facts, stop)
    if end.oom:
        end = _out_of_memory(end, facts, limits, inquire)
    if end.reason == "oom":
        return end  # A stop does not hide that the memory was not enough.
    if stop is not None:
        end = _stopped(end, stop)
    elif facts.signal == signal.SIGSYS and end.sender is None:
        end = _refused_call(end, facts, inquire)
    elif facts.exit_code == _NOT_FOUND:
        end = _not_up(end, facts, inquire)
    return _short_of_processes(end)


def _with(end: End, reason: Reason, message: str, **changes: object) -> End:
    return msgspec.structs.replace(end, reason=reason, message=message, **changes)


def _by_signal(end: End, facts: ExitFacts, stop: StopFacts | None) -> End:
    message = f"ended by {end.signal}"
    asked = facts.asked
    if stop is None and asked is not None and asked.signal == facts.signal:
        return _with(end, "signal", f"{message}, which `kill` had sent", sender="kill")
    return _with(end, "signal", message)


def _out_of_memory(
    end: End, facts: ExitFacts, limits: Limits | None, inquire: Callable[[], Inquiry]
) -> End:
    memory_max = None if limits is None else limits.memory_max
    found = inquire().oom(facts)
    by = None if found is None else found.by
    if facts.oom_events:
        by = "limit"
    elif by is None and (facts.oom_events == 0 or memory_max is None):
        by = "host"
    if by == "limit" and memory_max is None:
        # Lifted since: the figure is not known any more.
        limit = "at its memory limit"
    else:
        limit = f"at its memory limit of {_bytes(memory_max or 0)}"
    where = {
        "limit": f"the OOM killer {limit}",
        "above": f"the OOM killer at the memory limit of {found.where if found else ''} above it",
        "host": "the OOM killer, which the host's memory and not its own limit called",
        None: "the OOM killer",
    }[by]
    known = {"oom_by": by, "memory_max": memory_max}
    if facts.cause == "oom":
        peak = f", peak {_bytes(facts.peak_bytes)}" if facts.peak_bytes else ""
        return _with(end, "oom", f"killed by {where}{peak}", sender=None, **known)
    message = f"{end.message} after {facts.oom_kills} of its processes had been killed by {where}"
    return _with(end, end.reason, message, **known)


def _stopped(end: End, stop: StopFacts) -> End:
    reason, why = _WHY[stop.why]
    if stop.note:
        why += f" ({stop.note})"
    sender: Sender | None = None
    killed = end.signal == "SIGKILL"
    timed_out = killed and stop.killed_at is not None
    if timed_out or end.signal == signal_name(stop.signal):
        sender = stop.why
    message = f"{why}: {end.message}"
    if timed_out:
        message = (
            f"{why}: did not end within {stop.grace_s:g} s of {signal_name(stop.signal)},"
            " and was killed"
        )
        reason = "stop-timeout" if reason == "stopped" else reason
    return _with(end, reason, message, sender=sender, timed_out=timed_out)


def _refused_call(end: End, facts: ExitFacts, inquire: Callable[[], Inquiry]) -> End:
    call = inquire().system_call(facts)
    if call is None:
        # Seccomp's own signal; but a program can send it, and nothing tells the call.
        return _with(end, "signal", f"{end.message}, as seccomp does; no record names a call")
    message = f"killed by seccomp (SIGSYS) for the system call {call}"
    return _with(end, "seccomp", message, system_call=call)


def _not_up(end: End, facts: ExitFacts, inquire: Callable[[], Inquiry]) -> End:
    found = inquire().unstarted(facts)
    if found is None:
        return end
    message = f"{end.message}: {found.message}"
    return _with(end, "exec-failed", message, fault=found.fault, path=found.path)


def _short_of_processes(end: End) -> End:
    if end.pids_refused is None:
        return end
    limit = "" if end.pids_max is None else f" of {end.pids_max}"
    times = "once" if end.pids_refused == 1 else f"{end.pids_refused} times"
    message = f"{end.message}; its pids limit{limit} had refused it a process {times}"
    return _with(end, end.reason, message)


def never_ran(facts: ExitFacts, inquire: Callable[[], Inquiry]) -> End:
    """Return the end of a run whose program was not executed, as init noted it."""
    from nativert.runtime.diagnosis import Failure

    error = facts.error
    if error is None:
        return End(reason="exec-failed", message="could not be executed")
    failure = Failure(error.step, error.errno, error.path, os.strerror(error.errno))
    return exec_failed(inquire().never(failure), started_at=facts.started_at)


def exec_failed(found: Finding, *, started_at: float | None = None) -> End:
    """Return the end of a run whose program could not be executed."""
    return End(
        reason="exec-failed",
        message=found.message,
        started_at=started_at,
        fault=found.fault,
        path=found.path,
    )


def dependency_failed(note: str) -> End:
    """Return the end of an instance that was not started, because another is not there."""
    return End(reason="dependency", message=f"not started: {note}")


def init_lost(started_at: float | None, fate: str = "") -> End:
    """Return the end of an instance whose init is gone: the kernel killed what it held."""
    return End(
        reason="init-lost",
        message=f"its init {fate or 'ended'}, and with it everything in its namespaces",
        started_at=started_at,
    )


def node_rebooted() -> End:
    """Return the end of an instance that a reboot took."""
    return End(reason="node-rebooted", message="the node was rebooted")


def encode(end: End) -> str:
    """Return *end* as the store keeps it."""
    return msgspec.json.encode(end).decode()


def decode(text: str | None) -> End | None:
    """Return what the store kept; None where nothing was."""
    return None if text is None else msgspec.json.decode(text.encode(), type=known(End))
