"""Freezing, thawing and ending whole trees of processes on the real kernel."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import scale
from cgroup_members import DRIVERS, TREES, make_driver, member, prepared, python, until

from nativert.isolation.cgroups.driver import Cgroup, Driver
from nativert.isolation.cgroups.limits import Limits

pytestmark = pytest.mark.root

FREEZE_S = scale.LONG_S
SPIN = "print('spinning', flush=True)\nwhile True: pass"
# Twenty processes, half of them double-forked away and all deaf to TERM.
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(10):
    if os.fork() == 0:
        if os.fork():
            os._exit(0)
        os.setsid()
        time.sleep(99)
for _ in range(9):
    if os.fork() == 0:
        time.sleep(99)
for _ in range(10):
    os.wait()
print('made', flush=True)
time.sleep(99)
"""
FORK_BOMB = """
import os
print('go', flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


@pytest.fixture(params=TREES)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with prepared(make_driver(request.param)) as driver:
        yield driver


@pytest.fixture
def cgroup(driver: Driver) -> Cgroup:
    return driver.create("i-1")


def test_a_frozen_process_uses_no_cpu_and_goes_on_after_the_thaw(cgroup: Cgroup) -> None:
    with python(cgroup, SPIN) as process:
        assert process.line() == "spinning"
        assert not cgroup.frozen()
        cgroup.freeze(FREEZE_S)
        assert cgroup.frozen()
        sampler = cgroup.sampler()
        try:
            before, _, _ = sampler.core()
            # Time has to pass for a spinner that was not stopped to show itself.
            os.sched_yield()
            signal.sigtimedwait([], 0.05)
            assert sampler.core()[0] == before
            cgroup.thaw()
            assert not cgroup.frozen()
            until(lambda: sampler.core()[0] > before)
        finally:
            sampler.close()


def test_freezing_twice_and_thawing_twice_is_safe(cgroup: Cgroup) -> None:
    with member(cgroup, "sleep", "99"):
        until(cgroup.populated)
        for _ in range(2):
            cgroup.freeze(FREEZE_S)
            assert cgroup.frozen()
        for _ in range(2):
            cgroup.thaw()
            assert not cgroup.frozen()


def test_what_cannot_be_frozen_in_time_runs_again(cgroup: Cgroup) -> None:
    code = f"import os\nfor _ in range(4): os.fork()\n{SPIN}"
    with python(cgroup, code) as process:
        assert process.line() == "spinning"
        until(lambda: len(cgroup.pids()) == 16)
        # Sixteen spinners need several turns on the CPUs before all have stopped: they may have
        # had them while the one that froze them was waiting for its own.
        refused = False
        for _ in range(100):
            try:
                cgroup.freeze(0)
            except TimeoutError:
                refused = True
                break
            cgroup.thaw()
        assert refused
        assert not cgroup.frozen()
        before = cgroup.usage().cpu_ns
        until(lambda: cgroup.usage().cpu_ns > before)


@pytest.mark.parametrize("frozen", [False, True])
def test_kill_ends_the_whole_tree(cgroup: Cgroup, frozen: bool) -> None:
    with python(cgroup, STUBBORN) as process:
        assert process.line() == "made"
        assert len(cgroup.pids()) == 20
        if frozen:
            cgroup.freeze(FREEZE_S)
        cgroup.kill()
        assert process.wait() == -signal.SIGKILL
        until(lambda: not cgroup.populated())
        assert not cgroup.frozen()
    cgroup.remove()


@pytest.mark.parametrize("driver", DRIVERS, indirect=True)
def test_kill_ends_a_fork_bomb(cgroup: Cgroup) -> None:
    cgroup.apply(Limits(pids_max=64))
    with python(cgroup, FORK_BOMB) as process:
        assert process.line() == "go"
        until(lambda: cgroup.usage().pids == 64)
        cgroup.kill()
        assert process.wait() == -signal.SIGKILL
        until(lambda: not cgroup.populated())


def test_a_killed_cgroup_can_be_used_again(cgroup: Cgroup) -> None:
    for _ in range(3):
        with member(cgroup, "sleep", "99") as process:
            until(lambda: cgroup.pids() == [process.pid])
            cgroup.kill()
            assert process.wait() == -signal.SIGKILL
    with member(cgroup, "true") as process:
        assert process.wait() == 0


def test_kill_spares_everyone_else(driver: Driver, cgroup: Cgroup) -> None:
    other = driver.create("i-other")
    with member(cgroup, "sleep", "99"), member(other, "sleep", "99") as spared:
        until(lambda: cgroup.populated() and other.populated())
        cgroup.kill()
        until(lambda: not cgroup.populated())
        assert other.pids() == [spared.pid]


def test_kill_of_an_empty_cgroup_and_of_none(driver: Driver, cgroup: Cgroup) -> None:
    cgroup.kill()
    cgroup.remove()
    cgroup.kill()
    driver.open("i-never").kill()
