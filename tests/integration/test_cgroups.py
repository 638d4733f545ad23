"""Limits, usage and removal on the real kernel."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import scale
from cgroup_members import DRIVERS, make_driver, member, prepared, python, until
from msgspec.structs import replace

from nativert.isolation.cgroups.driver import Cgroup, Driver, UnenforceableError
from nativert.isolation.cgroups.limits import IoLimit, Limits

pytestmark = pytest.mark.root

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
HOLD_40_MIB = "import time; x = b'x' * (40 << 20); print('held', flush=True); time.sleep(99)"
SPIN = "print('spinning', flush=True)\nwhile True: pass"


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with prepared(make_driver(request.param)) as driver:
        yield driver


@pytest.fixture
def cgroup(driver: Driver) -> Cgroup:
    return driver.create("i-1")


def whole_disk() -> str:
    for block in sorted(Path("/sys/block").iterdir()):
        if not block.name.startswith(("loop", "ram", "zram", "dm-", "md", "sr")):
            return (block / "dev").read_text().strip()
    pytest.skip("needs a disk")


def test_prepare_may_be_repeated_and_destroy_leaves_nothing(driver: Driver) -> None:
    driver.prepare()
    assert driver.names() == ()
    driver.create("i-1").remove()
    driver.destroy()
    assert driver.names() == ()
    driver.prepare()


def test_limits_are_read_back_as_the_kernel_rounds_them(driver: Driver, cgroup: Cgroup) -> None:
    assert cgroup.read() == Limits()
    limits = Limits(
        cpu_max=0.5, cpu_weight=50, cpuset="0", memory_max=64 * MIB + 123, memory_swap=0,
        pids_max=32,
    )  # fmt: skip
    driver.check(limits)
    rounded = replace(limits, memory_max=(64 * MIB + 123) // PAGE * PAGE)
    assert cgroup.apply(limits) == rounded
    assert replace(cgroup.read(), memory_swap=0) == rounded
    raised = replace(limits, cpu_max=1.5, memory_max=128 * MIB, pids_max=None)
    assert cgroup.apply(raised) == raised
    lowered = replace(limits, cpu_max=0.004, memory_max=32 * MIB)
    assert cgroup.apply(lowered) == lowered
    assert cgroup.apply(Limits()) == Limits()


def test_default_weight_and_full_cpuset_are_answered_as_asked(cgroup: Cgroup) -> None:
    online = Path("/sys/devices/system/cpu/online").read_text().strip()
    limits = Limits(cpu_weight=100, cpuset=online)
    assert cgroup.apply(limits) == limits


def test_io_limits_of_a_disk(driver: Driver, cgroup: Cgroup) -> None:
    limits = Limits(io=(IoLimit(whole_disk(), rbps=MIB, wiops=100),))
    driver.check(limits)
    assert cgroup.apply(limits) == limits
    other = Limits(io=(IoLimit(whole_disk(), wbps=MIB),))
    assert cgroup.apply(other) == other
    assert cgroup.apply(Limits()) == Limits()


def test_a_process_joins_every_hierarchy(driver: Driver, cgroup: Cgroup) -> None:
    with python(cgroup, "print(open('/proc/self/cgroup').read().replace('\\n', ' '))") as process:
        lines = process.line()
        assert process.wait() == 0
    assert lines.count(f"/{driver.parent}/i-1") == len(cgroup.entry().tasks) + bool(
        cgroup.entry().into
    )


def test_pids_populated_and_remove(cgroup: Cgroup) -> None:
    assert not cgroup.populated()
    # The line says that it has joined every hierarchy, not only the first.
    with python(cgroup, "import time; print('in', flush=True); time.sleep(99)") as process:
        assert process.line() == "in"
        assert cgroup.pids() == [process.pid]
        assert cgroup.populated()
        start = time.monotonic()
        with pytest.raises(OSError) as caught:
            cgroup.remove()
        assert caught.value.errno == errno.EBUSY
        # It tries for a second, and not for ever.
        assert 0.9 < time.monotonic() - start < scale.seconds(8)
    cgroup.remove()
    cgroup.remove()
    assert cgroup.pids() == []


def test_remove_waits_for_the_dying(driver: Driver) -> None:
    for round_ in range(10):
        cgroup = driver.create(f"i-{round_}")
        with python(cgroup, HOLD_40_MIB) as process:
            assert process.line() == "held"
            os.kill(process.pid, signal.SIGKILL)
            cgroup.remove()
            assert process.wait() == -signal.SIGKILL


def test_remove_takes_what_is_nested(driver: Driver, cgroup: Cgroup) -> None:
    entry = cgroup.entry()
    directory = entry.into or os.path.dirname(entry.tasks[0])
    os.makedirs(f"{directory}/below/further")
    cgroup.remove()
    assert driver.names() == ()


def test_the_memory_limit_kills_and_is_counted(cgroup: Cgroup) -> None:
    cgroup.apply(Limits(memory_max=24 * MIB, memory_swap=0))
    with python(cgroup, HOLD_40_MIB) as process:
        assert process.line() == ""
        assert process.wait() == -signal.SIGKILL
    usage = cgroup.usage()
    # Where all go together the kernel counts the one that it had chosen twice.
    assert usage.oom_kills in (1, 2)
    assert usage.peak_bytes is None or 20 * MIB < usage.peak_bytes <= 24 * MIB
    entry = cgroup.entry()
    assert entry.oom is not None
    count = re.search(r"^oom_kill (\d+)$", Path(entry.oom).read_text(), re.MULTILINE)
    assert count is not None
    assert int(count[1]) == usage.oom_kills


@pytest.mark.cgroup_v1
def test_a_refused_memory_limit_restores_every_limit(cgroup: Cgroup) -> None:
    before = cgroup.apply(
        Limits(cpu_max=0.8, cpuset="0", memory_max=64 * MIB, memory_swap=0, pids_max=30)
    )
    with python(cgroup, HOLD_40_MIB) as process:
        assert process.line() == "held"
        with pytest.raises(OSError, match="Device or resource busy") as caught:
            cgroup.apply(Limits(cpu_max=0.1, memory_max=2 * MIB, memory_swap=0, pids_max=5))
        assert str(caught.value.filename).endswith(".limit_in_bytes")
        assert str(2 * MIB) in str(caught.value)
        assert cgroup.read() == before


def test_a_refusal_after_other_writes_restores_them(cgroup: Cgroup) -> None:
    before = cgroup.apply(Limits(memory_max=64 * MIB, pids_max=30))
    # Past the largest pid; the kernel answers EINVAL, and on v1 this file is written last.
    with pytest.raises(OSError) as caught:
        cgroup.apply(Limits(memory_max=32 * MIB, cpu_max=0.5, pids_max=1 << 40))
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value.filename).endswith("pids.max")
    assert cgroup.read() == before


def test_the_pids_limit_refuses_forks(cgroup: Cgroup) -> None:
    cgroup.apply(Limits(pids_max=3))
    code = """
import os, time
made = 0
try:
    while made < 50:
        if os.fork() == 0:
            time.sleep(99)
        made += 1
except BlockingIOError:
    print(made, flush=True)
time.sleep(99)
"""
    with python(cgroup, code) as process:
        assert process.line() == "2"
        assert cgroup.usage().pids == 3


def test_the_cpu_limit_throttles(cgroup: Cgroup) -> None:
    cgroup.apply(Limits(cpu_max=0.1))
    with python(cgroup, SPIN) as process:
        assert process.line() == "spinning"
        sampler = cgroup.sampler()
        try:
            until(lambda: sampler.sample().throttled_periods >= 3)
            first, start = sampler.sample(), time.monotonic_ns()
            until(lambda: sampler.sample().throttled_periods >= first.throttled_periods + 5)
            last, end = sampler.sample(), time.monotonic_ns()
            used = last.cpu_ns - first.cpu_ns
            assert used / (end - start) < 0.2
            # 10 ms of each period of 100 ms in which it wanted more; of the others what the
            # host had left.
            periods = last.throttled_periods - first.throttled_periods
            assert used > 0.3 * periods * 10_000_000
            assert last.throttled_ns > first.throttled_ns
        finally:
            sampler.close()


def test_the_cpuset_binds(cgroup: Cgroup) -> None:
    cgroup.apply(Limits(cpuset="0"))
    with python(cgroup, "import os; print(os.sched_getaffinity(0), flush=True)") as process:
        assert process.line() == "{0}"


def test_the_page_cache_is_no_working_set(cgroup: Cgroup, tmp_path: Path) -> None:
    # O_TMPFILE on the disk of the temporary directory; a tmpfs would be shmem, not cache.
    code = f"""
import os, time
fd = os.open({str(tmp_path)!r}, os.O_TMPFILE | os.O_RDWR)
os.write(fd, b'x' * (16 << 20))
os.fsync(fd)
print('written', flush=True)
time.sleep(99)
"""
    with python(cgroup, code) as process:
        assert process.line() == "written"
        usage = cgroup.usage()
        if os.statvfs(tmp_path).f_fsid == os.statvfs("/dev/shm").f_fsid:
            pytest.skip("the temporary directory is on a tmpfs")
        assert usage.file_bytes is not None
        assert usage.file_bytes > 12 * MIB
        assert usage.working_set_bytes < usage.memory_bytes - 12 * MIB


def test_usage_of_a_removed_cgroup_is_an_error(cgroup: Cgroup) -> None:
    sampler = cgroup.sampler()
    try:
        assert sampler.sample().pids == 0
        cgroup.remove()
        with pytest.raises(OSError) as caught:
            sampler.sample()
        assert caught.value.errno == errno.ENODEV
    finally:
        sampler.close()
    with pytest.raises(FileNotFoundError):
        cgroup.usage()
    with pytest.raises(FileNotFoundError):
        cgroup.read()


def test_check_refuses_what_this_host_has_not(driver: Driver) -> None:
    with pytest.raises(UnenforceableError, match="choose from"):
        driver.check(Limits(cpuset="0,4095"))
    with pytest.raises(UnenforceableError, match="lsblk"):
        driver.check(Limits(io=(IoLimit("4094:1", rbps=MIB),)))


@pytest.mark.cgroup_v1
def test_memory_high_is_refused_on_v1(driver: Driver, cgroup: Cgroup) -> None:
    with pytest.raises(UnenforceableError, match=r"memory\.high"):
        driver.check(Limits(memory_high=MIB))
    with pytest.raises(UnenforceableError):
        cgroup.apply(Limits(memory_high=MIB))
    assert cgroup.read() == Limits()


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_nested_parent_is_made_and_removed(kind: str) -> None:
    outer = make_driver(kind).parent
    driver = make_driver(kind, f"{outer}/b")
    with prepared(driver):
        cgroup = driver.create("i-1")
        cgroup.apply(Limits(pids_max=5))
        with member(cgroup, "sleep", "99"):
            until(cgroup.populated)
        cgroup.remove()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{outer}"))


def test_destroy_keeps_all_while_a_leaf_is_populated(driver: Driver) -> None:
    launcher = driver.open("launcher")
    with member(launcher, "sleep", "99"):
        until(launcher.populated)
        with pytest.raises(OSError) as caught:
            driver.destroy()
        assert caught.value.errno == errno.EBUSY
        assert not driver.open("init").populated()
        driver.open("init").usage()


def test_two_nodes_leave_each_other_alone(driver: Driver) -> None:
    other = make_driver("detected")
    with prepared(other):
        kept = driver.create("i-same")
        limits = kept.apply(Limits(pids_max=7))
        other.create("i-same").remove()
    assert kept.read() == limits
