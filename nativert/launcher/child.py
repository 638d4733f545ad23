"""The application's child, from fork to exec, step by step.

Order (each step needs what the one before it set, or would be refused after the next):
session, cgroups, cgroup namespace, limits, terminal, user namespace, descriptors, ids,
working directory, capabilities, signals, seccomp, exec. A failure is one report on a
CLOEXEC pipe; end-of-file without a report means that exec happened.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import termios
from collections.abc import Sequence

from nativert.isolation import credentials, namespaces, syscalls
from nativert.launcher import protocol

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

_REPORT_FD: Final = 3
_MAX_TEXT: Final = 4096
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Surroundings:
    """What every program of one instance is started into; opened before the root changed."""

    def __init__(
        self,
        *,
        tasks: Sequence[int],
        into: int | None,
        user: int,
        id_base: int,
        seccomp: syscalls.Filter,
        last_capability: int,
    ) -> None:
        self.tasks = tasks
        self.into = into
        self.user = user
        self.id_base = id_base
        self.seccomp = seccomp
        self.last_capability = last_capability


def start(
    program: Any, around: Surroundings, stdio: Sequence[int], *, terminal: bool = False
) -> tuple[int, int, int]:
    """Fork and start *program* (a `plan.Program`); return (pid, pidfd, report pipe).

    *stdio* are three descriptors; with *terminal* the first becomes the controlling
    terminal. They stay the caller's. Raises OSError if the fork fails.
    """
    report, report_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # CLONE_INTO_CGROUP attaches without the write lock that a later move would take
        # (an RCU grace period, 7-12 ms after a quiet spell).
        pid, pidfd = syscalls.clone3(cgroup=around.into)
    except BaseException:
        os.close(report)
        os.close(report_w)
        raise
    if pid == 0:
        _become(program, around, stdio, report_w, terminal=terminal)
    os.close(report_w)
    return pid, pidfd, report


def _become(
    program: Any, around: Surroundings, stdio: Sequence[int], report: int, *, terminal: bool
) -> NoReturn:
    step = "session"
    # Made while there is memory: under a small RLIMIT_AS there may be none for another.
    told = _report("limits", OSError(errno.ENOMEM, "no memory for the start: limits too low"))
    try:
        os.setsid()
        step = "cgroup"
        for tasks in around.tasks:
            os.write(tasks, b"0")
        step = "cgroup namespace"
        # Only now, in the cgroup: one made before shows /../ and, under nsdelegate,
        # refuses to be joined (cgroup_namespaces(7)).
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)
        step = "limits"
        credentials.set_oom_score_adj(program.oom_score_adj)
        credentials.set_rlimits(program.rlimits)
        if terminal:
            step = "terminal"
            os.fchown(stdio[0], around.id_base + program.uid, around.id_base + program.gid)
            fcntl.ioctl(stdio[0], termios.TIOCSCTTY, 0)
        step = "user namespace"
        namespaces.enter_user(around.user)
        step = "descriptors"
        report = _place(stdio, report)
        step = "user"
        credentials.become(program.uid, program.gid, program.groups)
        step = "working directory"
        os.chdir(program.cwd)
        os.umask(program.umask)
        step = "capabilities"
        credentials.drop_capabilities(around.last_capability)
        step = "signals"
        # Python ignores these two, and what is ignored stays ignored over exec.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        step = "seccomp"
        around.seccomp.load()
        step = "exec"
        _exec(program)
    except BaseException as e:  # noqa: BLE001 - whatever it was, this process ends here
        try:
            if not isinstance(e, MemoryError):
                told = _report(step, e)
        except MemoryError:
            pass
        os.write(report, told)
    finally:
        os._exit(127)


def _report(step: str, error: BaseException) -> bytes:
    message = protocol.error_message(step, error)
    for key in ("path", "text"):
        # A name may have megabytes, and what a pipe holds is all that init reads.
        if isinstance(message["error"][key], str):
            message["error"][key] = message["error"][key][:_MAX_TEXT]
    return json.dumps(message).encode()


def _place(stdio: Sequence[int], report: int) -> int:
    # Copies above the targets first, so that no dup2 overwrites what a later one needs.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (*stdio, report)]
    for target, fd in enumerate(high):
        os.dup2(fd, target, inheritable=target != _REPORT_FD)
    syscalls.close_range(_REPORT_FD + 1, 0xFFFFFFFF)
    return _REPORT_FD


def _exec(program: Any) -> NoReturn:
    name = program.argv[0]
    if "/" in name:
        candidates = [name]
    else:
        path = program.env.get("PATH", _DEFAULT_PATH)
        candidates = [os.path.join(part or ".", name) for part in path.split(":")]
    refused: OSError | None = None
    for candidate in candidates:
        try:
            os.execve(candidate, program.argv, program.env)  # noqa: S606 - that is the job
        except OSError as e:
            if e.errno == errno.ENOENT and os.path.exists(candidate):
                # The kernel reports a missing "#!" or ELF interpreter as the file's own absence.
                raise OSError(
                    errno.ELIBACC, "its interpreter or loader is not there", candidate
                ) from e
            if e.errno not in (errno.ENOENT, errno.ENOTDIR):
                refused = refused or OSError(e.errno, e.strerror, candidate)
    if refused is not None:
        raise refused
    raise FileNotFoundError(errno.ENOENT, "no such program", name)
