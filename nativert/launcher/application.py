"""The application of one run: its start, its end, and the evidence that outlives it.

The application ends when the process that init started ends; the rest of the PID
namespace gets SIGKILL at once, and the end is told when nothing is left.
"""

from __future__ import annotations

import json
import os
import signal
import time

from nativert.isolation import process
from nativert.launcher import child
from nativert.launcher.log import Log, Pipe
from nativert.launcher.protocol import EXIT_FILE, Message

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Any, Final

_TEMPORARY: Final = EXIT_FILE + ".tmp"


class Evidence:
    """The kernel's counters of the instance's cgroup, by descriptors opened beforehand."""

    def __init__(self, cgroup: Message) -> None:
        self._fds: dict[str, int] = {}
        for name in ("oom", "peak", "cpu"):
            path = cgroup.get(name)
            if path:
                self._fds[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _read(self, name: str) -> str:
        fd = self._fds.get(name)
        if fd is None:
            return ""
        try:
            return os.pread(fd, 4096, 0).decode()
        except OSError:
            # Removed from outside: then there is no evidence, which is the truth.
            return ""

    @staticmethod
    def _keyed(text: str, key: str) -> int | None:
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
        return None

    def oom_kills(self) -> int:
        """Return how many processes of the cgroup the OOM killer has taken so far."""
        return self._keyed(self._read("oom"), "oom_kill") or 0

    def peak_bytes(self) -> int | None:
        """Return the highest memory use of the cgroup, or None if the kernel has no figure."""
        text = self._read("peak").strip()
        return int(text) if text.isdigit() else None

    def cpu_ns(self) -> int | None:
        """Return the cpu time used by the cgroup."""
        text = self._read("cpu").strip()
        if text.isdigit():
            return int(text)
        usec = self._keyed(text, "usage_usec")
        return None if usec is None else usec * 1000


class Application:
    """One run of the application. States: starting, running, ending, ended."""

    def __init__(
        self, number: int, program: Any, around: child.Surroundings, log: Log, evidence: Evidence
    ) -> None:
        self.number = number
        self.state = "starting"
        self._evidence = evidence
        self._oom_before = evidence.oom_kills()
        self._cpu_before = evidence.cpu_ns()
        self._status: int | None = None
        self.pipes = [Pipe(log, "stdout"), Pipe(log, "stderr")]
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for pipe in self.pipes:
                # Many programs open /dev/stdout, which asks for the pipe's own permission.
                os.fchown(pipe.writer, around.id_base + program.uid, around.id_base + program.gid)
            self.started_at = time.time()
            stdio = (null, self.pipes[0].writer, self.pipes[1].writer)
            self.pid, self.pidfd, self.report = child.start(program, around, stdio)
        except BaseException:
            for pipe in self.pipes:
                pipe.close()
            raise
        finally:
            os.close(null)
        for pipe in self.pipes:
            pipe.close_writer()
        self.start = process.start_time(self.pid)

    def status(self) -> Message:
        """Return what init tells of it; pid and start time as seen in the instance."""
        return {
            "state": self.state,
            "run": self.number,
            "pid": self.pid,
            "start": self.start,
            "started_at": self.started_at,
        }

    def reaped(self, status: int) -> None:
        """Take note that the process that was started has ended with wait *status*."""
        self._status = status
        if self.state == "running":
            self.state = "ending"

    @property
    def main_ended(self) -> bool:
        """Whether the process that was started has been reaped."""
        return self._status is not None

    def finish(self, directory: int, boot_id: str) -> Message:
        """Write exit.json beneath *directory* and return what it says.

        Called when no process of the instance is left.
        """
        for pipe in self.pipes:
            pipe.finish()
        os.close(self.pidfd)
        self.state = "ended"
        facts = self._facts(boot_id)
        write_exit(directory, facts)
        return facts

    def never(self, error: Message, boot_id: str) -> Message:
        """Return what is told of a run whose program could not be executed."""
        return {
            "run": self.number,
            "boot_id": boot_id,
            "pid": self.pid,
            "started_at": self.started_at,
            "cause": "exec-failed",
            "error": {"step": error["step"], "errno": error["errno"] or 0, "path": error["path"]},
        }

    def _facts(self, boot_id: str) -> Message:
        status = self._status or 0
        code = os.waitstatus_to_exitcode(status)
        oom_kills = self._evidence.oom_kills() - self._oom_before
        cause = "exited" if code >= 0 else "signal"
        if code == -signal.SIGKILL and oom_kills > 0:
            cause = "oom"
        cpu_ns = self._evidence.cpu_ns()
        if cpu_ns is not None and self._cpu_before is not None:
            cpu_ns -= self._cpu_before
        return {
            "run": self.number,
            "boot_id": boot_id,
            "pid": self.pid,
            "start": self.start,
            "started_at": self.started_at,
            "ended_at": time.time(),
            "exit_code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "oom_kills": oom_kills,
            "peak_bytes": self._evidence.peak_bytes(),
            "cpu_ns": cpu_ns,
            "cause": cause,
            "error": None,
        }


def write_exit(directory: int, facts: Message) -> None:
    """Write exit.json so that a reader sees the old one or the new one, never a part."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(_TEMPORARY, flags, 0o600, dir_fd=directory)
        try:
            os.write(fd, json.dumps(facts).encode())
        finally:
            os.close(fd)
        os.rename(_TEMPORARY, EXIT_FILE, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        # No room, or the directory was removed: who is connected still hears of the end,
        # and who asks later finds init idle after this run.
        return
