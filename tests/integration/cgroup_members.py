"""Cgroups and processes inside them for the tests of the real kernel."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kernel
import pytest
import scale
from clone3 import clone3

from nativert.isolation.cgroups import detect
from nativert.isolation.cgroups.driver import Cgroup, Driver
from nativert.isolation.cgroups.hierarchies import mounted
from nativert.isolation.cgroups.v1 import V1Driver
from nativert.isolation.cgroups.v2 import V2Driver

DEADLINE_S = scale.LONG_S

# The driver that detect() chooses here, and the pure v1 driver wherever it can work.
DRIVERS = ["detected", pytest.param("v1", marks=pytest.mark.cgroup_v1)]
# The v2 driver on any cgroup2 mount: processes and freezer need no controllers.
TREES = [*DRIVERS, pytest.param("unified", marks=pytest.mark.unified)]

_MOUNT_ROOT = Path("/sys/fs/cgroup")


def make_driver(kind: str, parent: str = "") -> Driver:
    parent = parent or f"nativert-t{secrets.token_hex(3)}"
    found = mounted(_MOUNT_ROOT)
    if kind == "v1" and kernel.hierarchy() == "hybrid":
        return V1Driver(parent, found.v1)
    if kind == "unified":
        assert found.unified
        return V2Driver(parent, found.unified)
    return detect(parent)


@contextlib.contextmanager
def prepared(driver: Driver) -> Iterator[Driver]:
    """Prepare a driver, and in the end kill and remove all that is below its parent."""
    driver.prepare()
    try:
        yield driver
    finally:
        for name in driver.names():
            cgroup = driver.open(name)
            cgroup.kill()
            cgroup.remove()
        driver.destroy()


class Member:
    """A process that joins a cgroup as an application does, then executes a program."""

    def __init__(self, cgroup: Cgroup, argv: list[str]) -> None:
        entry = cgroup.entry()
        self._out, out = os.pipe()
        into = os.open(entry.into, os.O_RDONLY | os.O_DIRECTORY) if entry.into else None
        try:
            self.pid, self._pidfd = clone3(cgroup=into)
            if self.pid == 0:
                self._become(entry.tasks, argv, out)
        finally:
            os.close(out)
            if into is not None:
                os.close(into)
        self.status: int | None = None

    @staticmethod
    def _become(tasks: tuple[str, ...], argv: list[str], out: int) -> None:
        try:
            for path in tasks:
                fd = os.open(path, os.O_WRONLY)
                os.write(fd, b"0")
                os.close(fd)
            os.dup2(out, 1)
            os.execvp(argv[0], argv)
        finally:
            os._exit(111)

    def line(self) -> str:
        """Wait for the next line of output."""
        text = b""
        while not text.endswith(b"\n"):
            piece = os.read(self._out, 1)
            if not piece:
                break
            text += piece
        return text.decode().strip()

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Wait for the end; negative = signal."""
        if self.status is None:
            until(lambda: os.waitid(os.P_PID, self.pid, WAIT) is not None, timeout_s)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def close(self) -> None:
        if self.status is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self.wait()
        os.close(self._out)
        os.close(self._pidfd)


WAIT = os.WEXITED | os.WNOHANG | os.WNOWAIT


@contextlib.contextmanager
def member(cgroup: Cgroup, *argv: str) -> Iterator[Member]:
    process = Member(cgroup, list(argv))
    try:
        yield process
    finally:
        # A process in the v1 freezer does not die of a signal.
        cgroup.kill()
        process.close()


def python(cgroup: Cgroup, code: str) -> contextlib.AbstractContextManager[Member]:
    return member(cgroup, sys.executable, "-S", "-E", "-c", code)


def until(condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
    """Wait for what the kernel does without telling anyone."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the kernel did not get there in time"
        time.sleep(0.002)
