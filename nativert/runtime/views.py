"""What `runtime.Node` answers: the rows and reports that the CLI and the API show.

The field names are the keys of `-o json`. They stay; new ones may come.
"""

from __future__ import annotations

import signal
from typing import Any, Literal

import msgspec

Reason = Literal[
    "exited",
    "signal",
    "oom",
    "seccomp",
    "stopped",
    "stop-timeout",
    "unhealthy",
    "dependency",
    "exec-failed",
    "init-lost",
    "node-shutdown",
    "node-rebooted",
]
Fault = Literal[
    "not-found",
    "not-executable",
    "wrong-architecture",
    "missing-interpreter",
    "missing-library",
    "damaged",
    "busy",
    "pids-limit",
    "other",
]
Sender = Literal["kill", "stop", "force", "health", "dependency", "shutdown", "migrate"]


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How the application ended, as init or the kernel saw it; times in seconds since the epoch.

    `signal` is spelled as in signal(7), or SIG<number> where a real-time signal has no name.
    What is not known is None: no claim. docs/verdicts.md has a line for each word and key.
    """

    reason: Reason
    message: str
    exit_code: int | None = None
    signal: str | None = None
    oom: bool = False
    started_at: float | None = None
    ended_at: float | None = None
    peak_bytes: int | None = None
    cpu_s: float | None = None
    sender: Sender | None = None
    timed_out: bool = False
    oom_kills: int | None = None
    oom_by: Literal["limit", "above", "host"] | None = None
    memory_max: int | None = None
    pids_refused: int | None = None
    pids_max: int | None = None
    system_call: str | None = None
    fault: Fault | None = None
    path: str | None = None

    @property
    def code(self) -> int:
        """The exit code of a shell: the application's, 128+n on signal n, 126 and 127, else 125."""
        if self.exit_code is not None:
            return self.exit_code
        if self.signal is None:
            if self.fault in (None, "pids-limit", "other"):
                return 125
            return 127 if self.fault == "not-found" else 126
        if self.signal in signal.Signals.__members__:
            return 128 + signal.Signals[self.signal].value
        return 128 + int(self.signal.removeprefix("SIG"))


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `ps`. `pid` is the host's; figures are None where unknown."""

    instance: str
    fdu: str
    name: str
    state: str
    node: str
    pid: int | None = None
    restarts: int = 0
    cpu_ratio: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    uptime_s: float | None = None
    end: End | None = None


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the application's log; `time` is RFC 3339.

    `text` has the bytes as they were written, without the newline that ended them. `partial`:
    no newline followed here, the line goes on in the next record (or the application ended).
    """

    time: str
    stream: Literal["stdout", "stderr"]
    text: bytes
    partial: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    r"""Something below /data, not followed if it is a link; `mode` is octal, as chmod(1) takes it.

    `modified_at` is in seconds since the epoch. Bytes of `name` that are not UTF-8 are \xNN.
    """

    name: str
    kind: Literal["file", "directory", "link", "other"]
    size_bytes: int
    mode: str
    modified_at: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Kernel counters of one instance. `cpu_ratio` is in cores, since the last sample or start.

    A pressure is the share (0 to 1) of the last 10 s in which a task of it had to wait.
    """

    instance: str
    name: str
    state: str
    cpu_ratio: float | None = None
    cpu_ns: int | None = None
    throttled_ns: int | None = None
    memory_bytes: int | None = None
    memory_max: int | None = None
    peak_bytes: int | None = None
    anon_bytes: int | None = None
    file_bytes: int | None = None
    swap_bytes: int | None = None
    pids: int | None = None
    pids_max: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    net_rx_bytes: int | None = None
    net_tx_bytes: int | None = None
    oom_kills: int | None = None
    cpu_pressure: float | None = None
    memory_pressure: float | None = None
    io_pressure: float | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding of `doctor`; `fix` is empty where nothing is to be mended.

    Without what is not `needed` everything runs but what asks for just that.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """Something that no instance of this node owns any more, found by `gc`."""

    kind: str
    name: str
    removed: bool


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, in the order of `seq`; `time` is seconds since the epoch.

    `instance` is empty for what concerns the node. `name` is the instance's at that time.
    `data` of an edge has the `state` that it led to.
    """

    seq: int
    time: float
    instance: str
    name: str
    kind: str
    data: dict[str, Any]
