"""Run a test's body in a child process, so that what it does to itself ends with it."""

from __future__ import annotations

import mmap
import os
import pickle
import select
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

import pytest

from nativert.isolation.syscalls import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    MS_PRIVATE,
    MS_REC,
    mount,
    unshare,
)

T = TypeVar("T")

REPORT_BYTES = 1 << 20
LENGTH = struct.Struct("=Q")


class ForkedError(Exception):
    """The child ended without a report, or with one that pickle cannot carry."""


class SkippedError(Exception):
    """Carries `pytest.skip`, whose own exception claims to live in builtins: pickle fails."""


def run_forked(body: Callable[[], T], *, flags: int = 0, timeout_s: float = 30.0) -> T:
    """Return what *body* returns, or raise what it raises with the child's traceback as a note.

    *flags* are CLONE_NEW* of unshare(2), applied before the body; with CLONE_NEWNS nothing
    that it mounts reaches the host, with CLONE_NEWPID it is PID 1. `TimeoutError` after
    *timeout_s*: then the child is killed, and only the child.
    """
    # Shared memory and not a pipe: the body may close every descriptor, change the root
    # or leave children that would hold a pipe open.
    with mmap.mmap(-1, REPORT_BYTES) as report:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _child(body, flags, timeout_s, report)
        status = _wait(pid, timeout_s)
        (length,) = LENGTH.unpack_from(report)
        data = report[LENGTH.size : LENGTH.size + length]
    if not data:
        raise ForkedError(f"the child ended without a report: {_ending(status)}")
    value, error, text = pickle.loads(data)
    if isinstance(error, SkippedError):
        pytest.skip(str(error))
    if error is not None:
        error.add_note(f"in the child:\n{text}")
        raise error
    return value  # type: ignore[no-any-return]


def _child(body: Callable[[], object], flags: int, timeout_s: float, report: mmap.mmap) -> NoReturn:
    code = 0
    try:
        try:
            outcome = (_in_namespaces(body, flags, timeout_s), None, "")
            data = pickle.dumps(outcome)
        except BaseException as e:
            data = _pickle_error(e)
        if len(data) > REPORT_BYTES - LENGTH.size:
            data = pickle.dumps((None, ForkedError(f"the report has {len(data)} bytes"), ""))
        report[LENGTH.size : LENGTH.size + len(data)] = data
        LENGTH.pack_into(report, 0, len(data))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = 70
    finally:
        # Never back into pytest: the parent is the one who goes on.
        os._exit(code)


def _in_namespaces(body: Callable[[], T], flags: int, timeout_s: float) -> T:
    if flags:
        unshare(flags)
    if flags & CLONE_NEWNS:
        # Where systemd runs, / is shared and every mount would appear on the host.
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
    if flags & CLONE_NEWPID:
        # The caller of unshare stays in its PID namespace; only its children enter the new one.
        return run_forked(body, timeout_s=timeout_s)
    return body()


def _pickle_error(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    if isinstance(error, pytest.skip.Exception):
        error = SkippedError(error.msg)
    try:
        data = pickle.dumps((None, error, text))
        # Some exceptions can be written and not read again: their arguments do not fit __init__.
        pickle.loads(data)
    except Exception:
        data = pickle.dumps((None, ForkedError(f"{type(error).__name__}: {error}"), text))
    return data


def _wait(pid: int, timeout_s: float) -> int:
    pidfd = os.pidfd_open(pid)
    ended = False
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = bool(poll.poll(timeout_s * 1000))
    finally:
        if not ended:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
    if not ended:
        raise TimeoutError(f"the child did not end within {timeout_s} s")
    return status


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
