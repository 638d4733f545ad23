"""How an application ended, in one sentence, from what init and the kernel left behind."""

from __future__ import annotations

import os
import signal
from typing import Literal

import msgspec

from nativert.runtime.views import End
from nativert.store.boot import ExecError, ExitFacts


def signal_name(number: int) -> str:
    """Return the name of a signal as signal(7) has it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _bytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def of_exit(facts: ExitFacts, *, stopping: bool, memory_max: int | None) -> End:
    """Return the end that exit.json tells; *stopping* when we asked for it."""
    if facts.cause == "exec-failed":
        return exec_failed(_never(facts.error))
    name = signal_name(facts.signal) if facts.signal is not None else None
    if facts.cause == "unknown":
        message = "ended, and nothing tells how"
    elif facts.cause == "oom":
        limit = f" of {_bytes(memory_max)}" if memory_max else ""
        peak = f", peak {_bytes(facts.peak_bytes)}" if facts.peak_bytes else ""
        message = f"killed by the OOM killer at its memory limit{limit}{peak}"
    elif name is not None:
        message = f"ended by {name}"
    else:
        message = f"exited with code {facts.exit_code}"
        if facts.oom_kills:
            message += f" after the OOM killer had taken {facts.oom_kills} of its processes"
    return End(
        reason=_reason(facts, stopping=stopping),
        message=f"stopped: {message}" if stopping and facts.cause != "oom" else message,
        exit_code=facts.exit_code,
        signal=name,
        oom=facts.cause == "oom" or facts.oom_kills > 0,
        started_at=facts.started_at,
        ended_at=facts.ended_at,
        peak_bytes=facts.peak_bytes,
        cpu_s=None if facts.cpu_ns is None else facts.cpu_ns / 1e9,
    )


def _reason(facts: ExitFacts, *, stopping: bool) -> Literal["exited", "signal", "oom", "stopped"]:
    if facts.cause == "oom":
        return "oom"
    if stopping:
        return "stopped"
    return "signal" if facts.signal is not None else "exited"


def _never(error: ExecError | None) -> str:
    if error is None:
        return "could not be executed"
    where = f": {error.path}" if error.path else ""
    return f"{error.step}: {os.strerror(error.errno)}{where}"


def exec_failed(message: str) -> End:
    """Return the end of a run whose program could not be executed."""
    return End(reason="exec-failed", message=message)


def init_lost(started_at: float | None) -> End:
    """Return the end of an instance whose init is gone: the kernel killed what it held."""
    return End(
        reason="init-lost",
        message="its init ended, and with it everything in its namespaces",
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
    return None if text is None else msgspec.json.decode(text.encode(), type=End)
