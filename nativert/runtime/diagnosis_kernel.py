"""What the kernel's log says of an end: seccomp's kills and the OOM killer's.

The log is a ring, written at a limited rate, and another may have taken it over (auditd):
that it is silent proves nothing. See kernel/seccomp.c, mm/oom_kill.c, Documentation/ABI/
testing/dev-kmsg.
"""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, NamedTuple

KMSG: Final = Path("/dev/kmsg")
AUDIT_LOG: Final = Path("/var/log/audit/audit.log")
_AUDIT_TAIL_BYTES: Final = 256 << 10
# The audit record goes through a kernel thread and may come after the end that it is about.
_WAIT_S: Final = 0.3
# The log's clock is not corrected by NTP as ours is: up to this share of the uptime off.
_DRIFT: Final = 1e-4
_SLACK_S: Final = 5.0

_SECCOMP: Final = re.compile(
    r"audit\((?P<time>[0-9.]+):\d+\).* pid=(?P<pid>\d+) .*sig=(?P<signal>\d+)"
    r" arch=(?P<arch>[0-9a-f]+) syscall=(?P<number>\d+)"
)
_OOM: Final = re.compile(
    r"^oom-kill:constraint=(?P<constraint>\w+),.*?"
    r"(?:oom_memcg=(?P<limited>[^,]*)|global_oom),task_memcg=(?P<victims>[^,]*),.*pid=(?P<pid>\d+),"
)
_KILLED: Final = re.compile(
    r"^(?P<why>Memory cgroup out|Out) of memory.*: Killed process (?P<pid>\d+)"
)
_FAULT: Final = re.compile(r"^[^\[]+\[(?P<pid>\d+)\]: segfault at ")


class SystemCall(NamedTuple):
    """The call that a filter answered with a kill, and AUDIT_ARCH_* of its interface."""

    number: int
    arch: int


class Oom(NamedTuple):
    """Whose lack of memory it was; *where* is the cgroup above, for "above"."""

    by: Literal["limit", "above", "host"]
    where: str = ""


def records(since: float | None = None, *, path: Path = KMSG) -> list[str]:
    """Return the texts of the kernel log, the oldest first, of about *since* (epoch) and later."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return list(_texts(fd, _oldest_us(since)))
    finally:
        os.close(fd)


def _oldest_us(since: float | None) -> float:
    if since is None:
        return 0.0
    uptime_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    return (uptime_s - (time.time() - since) - uptime_s * _DRIFT - _SLACK_S) * 1e6


def _texts(fd: int, oldest_us: float) -> Iterable[str]:
    while True:
        try:
            # One record a read: "level,number,microseconds,flags;text\n key=value\n".
            record = os.read(fd, 8192)
        except BrokenPipeError:
            continue  # Overwritten before it was read: the next is.
        except OSError:
            return  # EAGAIN: that was the last.
        if not record:
            return
        head, _, rest = record.partition(b";")
        fields = head.split(b",")
        if len(fields) > 2 and fields[2].isdigit() and int(fields[2]) >= oldest_us:
            yield rest.split(b"\n")[0].decode(errors="replace")


def seccomp(pid: int, since: float, *, wait_s: float = _WAIT_S) -> SystemCall | None:
    """Return the system call for which seccomp killed process *pid* after *since* (epoch)."""
    deadline = time.monotonic() + wait_s
    try:
        fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return seccomp_in(_audited(), pid, since)
    try:
        while True:
            found = seccomp_in(_texts(fd, 0.0), pid, since) or seccomp_in(_audited(), pid, since)
            left_s = deadline - time.monotonic()
            if found is not None or left_s <= 0:
                return found
            select.select([fd], [], [], left_s)
    finally:
        os.close(fd)


def _audited() -> list[str]:
    # Where auditd runs, it has the records and the kernel's log has not.
    try:
        with AUDIT_LOG.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _AUDIT_TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def seccomp_in(texts: Iterable[str], pid: int, since: float) -> SystemCall | None:
    """Return what *texts*, the oldest first, say of the kill of *pid*; the newest counts."""
    found = None
    for text in texts:
        if "type=1326" not in text and "type=SECCOMP" not in text:
            continue
        match = _SECCOMP.search(text)
        if match is None or int(match["pid"]) != pid or match["signal"] == "0":
            continue
        # The record's own time, of the clock that started_at is of, in milliseconds.
        if float(match["time"]) >= since - 0.01:
            found = SystemCall(int(match["number"]), int(match["arch"], 16))
    return found


def oom_in(texts: Iterable[str], cgroup: str, pid: int | None) -> Oom | None:
    """Return whose lack of memory killed in *cgroup* (its last component) or killed *pid*."""
    found = None
    for text in texts:
        match = _OOM.match(text)
        if match is not None:
            if cgroup in match["victims"].split("/"):
                found = _whose(match["limited"], cgroup)
            continue
        match = _KILLED.match(text)
        # Whose cgroup it was stands in the line before, which is written at a limited rate.
        if match is None or found is not None or int(match["pid"]) != pid:
            continue
        if match["why"] == "Out":
            found = Oom("host")
    return found


def _whose(limited: str | None, cgroup: str) -> Oom:
    if limited is None:
        return Oom("host")
    return Oom("limit") if limited.endswith(f"/{cgroup}") else Oom("above", limited)


def fate(texts: Iterable[str], pid: int) -> str:
    """Return how process *pid* ended, in words, if the log says so; "" otherwise."""
    for text in texts:
        match = _KILLED.match(text)
        if match is not None and int(match["pid"]) == pid:
            return "was killed by the OOM killer"
        match = _FAULT.match(text)
        if match is not None and int(match["pid"]) == pid:
            return "had a segmentation fault"
    return ""


def name_of(call: SystemCall) -> str:
    """Return the name of a system call; its number where libseccomp has none for it."""
    try:
        import pyseccomp

        return os.fsdecode(pyseccomp.resolve_syscall(call.arch, call.number))
    except (ImportError, RuntimeError, ValueError, OSError):
        return f"number {call.number}"
