"""The v1 and hybrid drivers on a directory that stands in for cgroupfs."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from fake_cgroupfs import FakeCgroupfs
from msgspec.structs import replace

from nativert.errors import Code
from nativert.isolation.cgroups import detect
from nativert.isolation.cgroups.driver import Driver, UnenforceableError
from nativert.isolation.cgroups.hierarchies import mounted
from nativert.isolation.cgroups.host import Host
from nativert.isolation.cgroups.hybrid import HybridDriver
from nativert.isolation.cgroups.limits import IoLimit, Limits
from nativert.isolation.cgroups.v1 import V1Driver
from nativert.isolation.cgroups.v1_limits import MEMORY, MEMSW, V1Knobs

CONTROLLERS = ("blkio", "cpu", "cpuacct", "cpuset", "memory", "pids", "systemd")
PARENT = "above/n"
MIB = 1 << 20
LIMITS = Limits(
    cpu_max=0.5,
    cpu_weight=200,
    cpuset="0-1,3",
    memory_max=64 * MIB,
    memory_swap=16 * MIB,
    pids_max=32,
    io=(IoLimit("254:0", rbps=MIB, wbps=2 * MIB, riops=100, wiops=50),),
)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    proc.mkdir()
    (proc / "meminfo").write_text("MemTotal: 1 kB\nSwapTotal:       0 kB\n")
    (proc / "cgroups").write_text("#subsys_name hierarchy num_cgroups enabled\nmemory 0 1 0\n")
    disk = sys / "devices" / "vda"
    (disk / "vda1").mkdir(parents=True)
    (disk / "dev").write_text("254:0\n")
    (disk / "vda1" / "partition").write_text("1\n")
    (sys / "dev" / "block").mkdir(parents=True)
    (sys / "dev" / "block" / "254:0").symlink_to(disk)
    (sys / "dev" / "block" / "254:1").symlink_to(disk / "vda1")
    return Host(proc=str(proc), sys=str(sys))


@pytest.fixture
def cgroupfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCgroupfs:
    root = tmp_path / "cgroup"
    root.mkdir()
    return FakeCgroupfs(root, monkeypatch)


@pytest.fixture
def hybrid(cgroupfs: FakeCgroupfs, host: Host) -> Driver:
    cgroupfs.mount_v1(*CONTROLLERS)
    cgroupfs.mount_unified(cgroupfs.root / "unified", "hugetlb")
    found = mounted(cgroupfs.root)
    assert found.unified
    return HybridDriver(PARENT, found.v1, found.unified, host=host)


def v1_driver(cgroupfs: FakeCgroupfs, host: Host, *controllers: str) -> Driver:
    cgroupfs.mount_v1(*controllers)
    return V1Driver(PARENT, mounted(cgroupfs.root).v1, host=host)


def test_create_makes_and_initialises_every_hierarchy(
    cgroupfs: FakeCgroupfs, hybrid: Driver
) -> None:
    hybrid.prepare()
    cgroup = hybrid.create("i-1")
    for hierarchy in (*CONTROLLERS, "unified"):
        assert (cgroupfs.root / hierarchy / PARENT / "i-1").is_dir()
    assert cgroupfs.get(f"cpuset/{PARENT}/i-1/cpuset.cpus") == "0-3"
    assert cgroupfs.get(f"cpuset/{PARENT}/i-1/cpuset.mems") == "0"
    assert cgroupfs.get(f"cpuset/{PARENT}/launcher/cpuset.cpus") == "0-3"
    entry = cgroup.entry()
    assert set(entry.tasks) == {
        str(cgroupfs.root / hierarchy / PARENT / "i-1" / "tasks") for hierarchy in CONTROLLERS
    }
    assert entry.into == str(cgroupfs.root / "unified" / PARENT / "i-1")
    assert entry.oom is not None
    assert entry.oom.endswith("memory.oom_control")
    assert entry.pids is None
    events = cgroupfs.root / "pids" / PARENT / "i-1" / "pids.events"
    events.write_text("max 0\n")
    assert cgroup.entry().pids == str(events)


def test_create_leaves_nothing_when_one_hierarchy_refuses(
    cgroupfs: FakeCgroupfs, hybrid: Driver
) -> None:
    hybrid.prepare()
    cgroupfs.refuse("cpuset.mems", OSError(errno.EINVAL, ""))
    with pytest.raises(OSError, match=r"cpuset\.mems"):
        hybrid.create("i-1")
    assert hybrid.names() == ()


def test_an_existing_cgroup_is_not_taken_over(hybrid: Driver) -> None:
    hybrid.prepare()
    hybrid.create("i-1")
    with pytest.raises(FileExistsError):
        hybrid.create("i-1")
    assert hybrid.names() == ("i-1",)


def test_names_counts_a_cgroup_left_in_one_hierarchy(
    cgroupfs: FakeCgroupfs, hybrid: Driver
) -> None:
    hybrid.prepare()
    (cgroupfs.root / "blkio" / PARENT / "i-left").mkdir()
    hybrid.create("i-1")
    assert hybrid.names() == ("i-1", "i-left")
    hybrid.open("i-left").remove()
    assert hybrid.names() == ("i-1",)


def test_destroy_refuses_while_a_cgroup_is_there(cgroupfs: FakeCgroupfs, hybrid: Driver) -> None:
    hybrid.prepare()
    cgroup = hybrid.create("i-1")
    with pytest.raises(OSError, match="holds i-1") as caught:
        hybrid.destroy()
    assert caught.value.errno == errno.EBUSY
    assert (cgroupfs.root / "cpu" / PARENT / "init").is_dir()
    cgroup.remove()
    hybrid.destroy()
    assert not (cgroupfs.root / "cpu" / "above").exists()


def test_destroy_refuses_a_populated_leaf_and_keeps_all(
    cgroupfs: FakeCgroupfs, hybrid: Driver
) -> None:
    hybrid.prepare()
    cgroupfs.set(f"unified/{PARENT}/launcher/cgroup.procs", "4711\n")
    with pytest.raises(OSError, match="process 4711"):
        hybrid.destroy()
    assert (cgroupfs.root / "cpu" / PARENT / "init").is_dir()


def test_apply_reads_back_what_it_set(cgroupfs: FakeCgroupfs, hybrid: Driver) -> None:
    hybrid.prepare()
    cgroup = hybrid.create("i-1")
    assert cgroup.read() == Limits()
    # A plain file keeps one line, the kernel one per device: limit one way only.
    limits = replace(LIMITS, io=(IoLimit("254:0", rbps=MIB),))
    assert cgroup.apply(limits) == limits
    assert cgroup.read() == limits
    here = f"{PARENT}/i-1"
    assert cgroupfs.get(f"memory/{here}/memory.limit_in_bytes") == str(64 * MIB)
    assert cgroupfs.get(f"memory/{here}/memory.memsw.limit_in_bytes") == str(80 * MIB)
    assert cgroupfs.get(f"cpu/{here}/cpu.cfs_quota_us") == "50000"
    assert cgroupfs.get(f"cpu/{here}/cpu.shares") == "2452"
    assert cgroupfs.get(f"cpuset/{here}/cpuset.cpus") == "0-1,3"
    assert cgroupfs.get(f"blkio/{here}/blkio.throttle.read_bps_device") == f"254:0 {MIB}"


def test_the_last_limit_of_a_plan_rolls_back_all(cgroupfs: FakeCgroupfs, hybrid: Driver) -> None:
    hybrid.prepare()
    cgroup = hybrid.create("i-1")
    before = cgroup.apply(replace(LIMITS, io=()))
    cgroupfs.refuse("pids.max", OSError(errno.EINVAL, ""))
    with pytest.raises(OSError, match="write '7'") as caught:
        cgroup.apply(Limits(cpu_max=2, memory_max=MIB, memory_swap=0, cpuset="2", pids_max=7))
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value.filename).endswith("pids.max")
    assert cgroup.read() == before
    # The refused file could not be restored either, and the error says so.
    assert any("cannot restore" in note for note in caught.value.__notes__)


def test_memsw_goes_first_up_and_last_down(tmp_path: Path) -> None:
    knobs = V1Knobs({"memory": str(tmp_path)})
    small, large = {MEMORY: 10, MEMSW: 20}, {MEMORY: 100, MEMSW: 200}
    up = knobs.plan(Limits(memory_max=100, memory_swap=100), dict(small))
    assert up == [(MEMSW, 200), (MEMORY, 100)]
    down = knobs.plan(Limits(memory_max=10, memory_swap=10), dict(large))
    assert down == [(MEMORY, 10), (MEMSW, 20)]
    freed = knobs.plan(Limits(), dict(small))
    assert freed == [(MEMSW, None), (MEMORY, None)]
    bound = knobs.plan(Limits(memory_max=10, memory_swap=0), {MEMORY: None, MEMSW: None})
    assert bound == [(MEMORY, 10), (MEMSW, 10)]


def test_a_limit_without_its_controller_is_not_dropped_silently(tmp_path: Path) -> None:
    knobs = V1Knobs({})
    for limits in (
        Limits(pids_max=1),
        Limits(cpu_max=1),
        Limits(cpu_weight=5),
        Limits(cpuset="0"),
        Limits(memory_max=MIB),
        Limits(io=(IoLimit("254:0", rbps=1),)),
    ):
        with pytest.raises(FileNotFoundError):
            knobs.plan(limits, {})
    assert knobs.plan(Limits(), {}) == []


def test_swap_zero_is_satisfied_without_swap_accounting(
    cgroupfs: FakeCgroupfs, hybrid: Driver
) -> None:
    hybrid.prepare()
    cgroup = hybrid.create("i-1")
    (cgroupfs.root / "memory" / PARENT / "i-1" / "memory.memsw.limit_in_bytes").unlink()
    (cgroupfs.root / "memory" / PARENT / "memory.memsw.limit_in_bytes").unlink()
    limits = Limits(memory_max=MIB, memory_swap=0)
    hybrid.check(limits)
    assert cgroup.apply(limits) == limits
    with pytest.raises(UnenforceableError, match="swapaccount=1"):
        hybrid.check(Limits(memory_max=MIB, memory_swap=MIB))


def test_swap_alone_cannot_be_limited_where_there_is_swap(hybrid: Driver, host: Host) -> None:
    hybrid.check(Limits(memory_swap=0))
    Path(host.proc, "meminfo").write_text("SwapTotal:       1024 kB\n")
    with pytest.raises(UnenforceableError, match=r"set memory\.max too"):
        hybrid.check(Limits(memory_swap=0))


def test_check_accepts_before_and_after_prepare(hybrid: Driver) -> None:
    hybrid.check(LIMITS)
    hybrid.prepare()
    hybrid.check(LIMITS)


@pytest.mark.parametrize(
    ("limits", "controller", "text"),
    [
        (Limits(memory_high=MIB), "memory", "soft_limit_in_bytes"),
        (Limits(cpuset="2-7"), "cpuset", "cpu 4-7 .*choose from 0-3"),
        (Limits(cpuset="two"), "cpuset", "not a CPU list"),
        (Limits(cpuset=""), "cpuset", "empty"),
        (Limits(cpu_max=0.0001), "cpu", "0.001 cores or more"),
        (Limits(cpu_weight=10001), "cpu", "1 to 10000"),
        (Limits(io=(IoLimit("9:9", rbps=1),)), "blkio", "no block device 9:9"),
        (Limits(io=(IoLimit("254:1", rbps=1),)), "blkio", "partition.*use its disk, 254:0"),
        (Limits(io=(IoLimit("../254:0", rbps=1),)), "blkio", "no block device"),
    ],
)
def test_check_names_controller_reason_and_fix(
    hybrid: Driver, limits: Limits, controller: str, text: str
) -> None:
    with pytest.raises(UnenforceableError, match=text) as caught:
        hybrid.check(limits)
    assert caught.value.controller == controller
    assert caught.value.code is Code.UNENFORCEABLE
    assert caught.value.fix


def test_missing_throttle_files_name_the_kernel_option(
    cgroupfs: FakeCgroupfs, hybrid: Driver
) -> None:
    (cgroupfs.root / "blkio" / "blkio.throttle.write_iops_device").unlink()
    hybrid.check(Limits(io=(IoLimit("254:0", rbps=1),)))
    with pytest.raises(UnenforceableError, match="CONFIG_BLK_DEV_THROTTLING"):
        hybrid.check(Limits(io=(IoLimit("254:0", wiops=1),)))


def test_a_disabled_memory_controller_names_the_boot_option(
    cgroupfs: FakeCgroupfs, host: Host
) -> None:
    driver = v1_driver(cgroupfs, host, "cpu", "freezer")
    with pytest.raises(UnenforceableError, match="boot with cgroup_enable=memory"):
        driver.check(Limits(memory_max=MIB))
    Path(host.proc, "device-tree").mkdir()
    Path(host.proc, "device-tree", "model").write_text("Raspberry Pi 4 Model B Rev 1.5\0")
    with pytest.raises(UnenforceableError, match=r"/boot/firmware/cmdline\.txt"):
        driver.check(Limits(memory_max=MIB))
    with pytest.raises(UnenforceableError, match="mount -t cgroup -o pids"):
        driver.check(Limits(pids_max=1))


def test_a_controller_bound_to_cgroup2_is_named(cgroupfs: FakeCgroupfs, host: Host) -> None:
    cgroupfs.mount_v1("cpu")
    cgroupfs.mount_unified(cgroupfs.root / "unified", "memory")
    driver = HybridDriver(
        PARENT, mounted(cgroupfs.root).v1, str(cgroupfs.root / "unified"), host=host
    )
    with pytest.raises(UnenforceableError, match="unified_cgroup_hierarchy=1"):
        driver.check(Limits(memory_max=MIB))


def test_pure_v1_needs_the_freezer(cgroupfs: FakeCgroupfs, host: Host) -> None:
    driver = v1_driver(cgroupfs, host, "cpu")
    with pytest.raises(UnenforceableError) as caught:
        driver.prepare()
    assert caught.value.controller == "freezer"


def test_hybrid_keeps_out_of_the_v1_freezer(cgroupfs: FakeCgroupfs) -> None:
    cgroupfs.mount_v1("freezer", "pids")
    cgroupfs.mount_unified(cgroupfs.root / "unified")
    driver = detect(PARENT, mount_root=cgroupfs.root)
    driver.prepare()
    driver.create("i-1")
    assert not (cgroupfs.root / "freezer" / PARENT).exists()


def test_v1_freezes_and_kills_by_the_freezer(cgroupfs: FakeCgroupfs, host: Host) -> None:
    driver = v1_driver(cgroupfs, host, "cpu", "freezer")
    driver.prepare()
    cgroup = driver.create("i-1")
    cgroup.freeze(1)
    assert cgroup.frozen()
    cgroupfs.writes.clear()
    cgroup.kill()
    state = f"freezer/{PARENT}/i-1/freezer.state"
    assert cgroupfs.writes == [(state, "FROZEN"), (state, "THAWED")]
    assert not cgroup.frozen()


def test_v1_thaws_again_when_freezing_takes_too_long(
    cgroupfs: FakeCgroupfs, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = v1_driver(cgroupfs, host, "freezer")
    driver.prepare()
    cgroup = driver.create("i-1")
    monkeypatch.setattr("nativert.isolation.cgroups.files.read_kept", lambda _: b"FREEZING\n")
    with pytest.raises(TimeoutError, match=r"within 0\.02 s"):
        cgroup.freeze(0.02)
    assert cgroupfs.get(f"freezer/{PARENT}/i-1/freezer.state") == "THAWED"


def test_usage_takes_the_page_cache_out_of_the_working_set(
    cgroupfs: FakeCgroupfs, hybrid: Driver
) -> None:
    hybrid.prepare()
    cgroup = hybrid.create("i-1")
    here = f"{PARENT}/i-1"
    cgroupfs.set(f"memory/{here}/memory.usage_in_bytes", "1000\n")
    cgroupfs.set(f"memory/{here}/memory.max_usage_in_bytes", "5000\n")
    cgroupfs.set(
        f"memory/{here}/memory.stat",
        "inactive_file 1\ntotal_cache 700\ntotal_rss 300\ntotal_inactive_file 600\n",
    )
    cgroupfs.set(f"memory/{here}/memory.oom_control", "under_oom 0\noom_kill 2\n")
    cgroupfs.set(f"cpu/{here}/cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 77\n")
    cgroupfs.set(f"cpuacct/{here}/cpuacct.usage", "123456\n")
    cgroupfs.set(f"pids/{here}/pids.current", "3\n")
    cgroupfs.set(
        f"blkio/{here}/blkio.throttle.io_service_bytes_recursive",
        "254:0 Read 10\n254:0 Write 20\n254:0 Total 30\n7:0 Read 1\n7:0 Write 2\nTotal 33\n",
    )
    usage = cgroup.usage()
    assert usage.working_set_bytes == 400
    assert (usage.anon_bytes, usage.file_bytes, usage.swap_bytes) == (300, 700, None)
    assert (usage.memory_bytes, usage.peak_bytes, usage.oom_kills) == (1000, 5000, 2)
    assert (usage.cpu_ns, usage.throttled_ns, usage.throttled_periods) == (123456, 77, 4)
    assert (usage.pids, usage.io_read_bytes, usage.io_write_bytes) == (3, 11, 22)


def test_a_sampler_sees_later_values_and_no_missing_cgroup(
    cgroupfs: FakeCgroupfs, hybrid: Driver
) -> None:
    hybrid.prepare()
    sampler = hybrid.create("i-1").sampler()
    try:
        assert sampler.core() == (0, 0, 0)
        cgroupfs.set(f"memory/{PARENT}/i-1/memory.usage_in_bytes", "42\n")
        assert sampler.core() == (0, 42, 0)
    finally:
        sampler.close()
        sampler.close()
    with pytest.raises(FileNotFoundError):
        hybrid.open("i-none").usage()
    with pytest.raises(FileNotFoundError):
        hybrid.open("i-none").read()


def test_a_share_is_what_it_says_after_a_very_small_one(
    cgroupfs: FakeCgroupfs, hybrid: Driver
) -> None:
    hybrid.prepare()
    cgroup = hybrid.create("i-1")
    before = Limits()
    # The first has a longer period, which must not stay when the limit is off.
    for cores in (0.005, None, 0.5, 0.005, 0.5, None, 2.0):
        limits = Limits(cpu_max=cores)
        assert cgroup.apply(limits, since=before) == limits
        assert cgroup.read() == limits
        before = limits
    assert cgroupfs.get(f"cpu/{PARENT}/i-1/cpu.cfs_period_us") == "100000"
