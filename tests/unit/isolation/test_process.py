"""Who a process is: start time and pidfd, over zombies, reused numbers and odd names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import scale

from nativert.isolation import process

NOBODY = 0x7FFFFFF0


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def started(pid: int) -> int:
    start = process.start_time(pid)
    assert start is not None
    return start


def test_start_time_is_field_22_of_stat() -> None:
    boot_ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert 0 < started(os.getpid()) <= boot_ticks
    assert process.start_time(NOBODY) is None


def test_a_name_with_blanks_and_parentheses_does_not_shift_the_fields() -> None:
    code = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(15, b') R 1 (2 3', 0, 0, 0);"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        before = started(child.pid)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert started(child.pid) == before
        assert started(child.pid) >= started(os.getpid())


def test_a_running_process_is_alive_under_its_own_start_time_only(
    sleeper: subprocess.Popen[bytes],
) -> None:
    start = started(sleeper.pid)
    before = descriptors()
    assert process.alive(sleeper.pid, start)
    # The same number with another start time is somebody else.
    assert not process.alive(sleeper.pid, start + 1)
    assert not process.alive(sleeper.pid, None)
    assert not process.alive(None, start)
    assert not process.alive(NOBODY, start)
    assert descriptors() == before


def test_a_zombie_keeps_pid_and_start_time_and_counts_as_gone(
    sleeper: subprocess.Popen[bytes],
) -> None:
    start = started(sleeper.pid)
    pidfd = process.open_pidfd(sleeper.pid, start)
    assert pidfd is not None
    assert not process.ended(pidfd)
    sleeper.kill()
    assert process.wait_end(pidfd, 10)
    # Nobody has reaped it yet.
    assert process.start_time(sleeper.pid) == start
    assert process.ended(pidfd)
    assert not process.alive(sleeper.pid, start)
    assert process.host_pid(pidfd) == sleeper.pid
    sleeper.wait()
    assert process.host_pid(pidfd) == -1
    os.close(pidfd)


def test_a_number_that_is_now_a_threads_is_nobody() -> None:
    result: list[bool] = []

    def body() -> None:
        tid = threading.get_native_id()
        result.append(process.alive(tid, started(tid)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert result == [False]


def test_kill_does_not_touch_another_process_of_the_same_number(
    sleeper: subprocess.Popen[bytes],
) -> None:
    start = started(sleeper.pid)
    process.kill(sleeper.pid, start - 1)
    assert sleeper.poll() is None
    process.kill(sleeper.pid, start)
    assert sleeper.wait(scale.LONG_S) == -signal.SIGKILL
    process.kill(sleeper.pid, start)


def test_waiting_ends_in_time(sleeper: subprocess.Popen[bytes]) -> None:
    pidfd = process.open_pidfd(sleeper.pid, started(sleeper.pid))
    assert pidfd is not None
    begun = time.monotonic()
    assert not process.wait_end(pidfd, 0.05)
    assert not process.wait_end(pidfd, -1)
    assert time.monotonic() - begun < 5
    os.close(pidfd)


def test_an_exit_that_waits_for_others_is_an_end(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = started(sleeper.pid)
    stat = process._stat(sleeper.pid)
    assert stat is not None
    stat[6] = str(int(stat[6]) | 4).encode()  # PF_EXITING of include/linux/sched.h
    monkeypatch.setattr(process, "_stat", lambda pid: stat)
    assert not process.alive(sleeper.pid, start)
    # A first thread that has ended, and whose others live.
    stat[0] = b"Z"
    assert process.alive(sleeper.pid, start)
