"""Runs and times the peers' commands in a mount namespace of its own.

Executed, not imported, by `peers`. crun 1.8.1 refuses a hybrid host whose cgroup2 mount has a
controller; here that mount is covered. One JSON object a line: argv, and for a stop the pid
whose end belongs to the operation.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36
_GONE_TIMEOUT_MS = 10_000


def _cover_unified() -> None:
    if os.path.ismount("/sys/fs/cgroup/unified"):
        subprocess.run(
            ["mount", "-t", "tmpfs", "none", "/sys/fs/cgroup/unified"], check=True, close_fds=False
        )


def _measure(argv: list[str], gone: int | None) -> dict[str, object]:
    pidfd = None if gone is None else os.pidfd_open(gone)
    error = os.memfd_create("stderr")
    start = time.perf_counter_ns()
    # close_fds=False lets subprocess use vfork(2): the start costs the same for every size.
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=error,
        close_fds=False,
    )
    if pidfd is not None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_GONE_TIMEOUT_MS)
        os.close(pidfd)
    elapsed_ns = time.perf_counter_ns() - start
    text = os.pread(error, 2000, 0).decode(errors="replace").strip()
    os.close(error)
    return {"us": elapsed_ns / 1000, "code": done.returncode, "stderr": text}


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    """Serve until standard input ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _cover_unified()
    for line in sys.stdin:
        request = json.loads(line)
        answer = _measure(request["argv"], request.get("gone"))
        print(json.dumps(answer | {"number": request["number"]}), flush=True)
        _reap()


main()
