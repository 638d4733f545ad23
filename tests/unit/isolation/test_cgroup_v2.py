"""The v2 driver on a directory that stands in for cgroup2."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from fake_cgroupfs import V2_CORE, FakeCgroupfs

from nativert.isolation.cgroups import files, tree
from nativert.isolation.cgroups.driver import Driver, UnenforceableError
from nativert.isolation.cgroups.host import Host
from nativert.isolation.cgroups.knobs import Knob
from nativert.isolation.cgroups.limits import IoLimit, Limits, Pressure
from nativert.isolation.cgroups.v2 import V2Driver
from nativert.isolation.cgroups.v2_limits import CPU, HIGH, MEMORY, V2Knobs

PARENT = "above/n"
MIB = 1 << 20


@pytest.fixture
def host(tmp_path: Path) -> Host:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    proc.mkdir()
    (proc / "meminfo").write_text("SwapTotal:       0 kB\n")
    (proc / "cgroups").write_text("#subsys_name hierarchy num_cgroups enabled\nmemory 0 1 0\n")
    (sys / "dev" / "block" / "254:0").mkdir(parents=True)
    return Host(proc=str(proc), sys=str(sys))


@pytest.fixture
def cgroupfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCgroupfs:
    root = tmp_path / "cgroup"
    root.mkdir()
    fake = FakeCgroupfs(root, monkeypatch)
    fake.mount_unified(root, "cpuset cpu io memory hugetlb pids")
    return fake


@pytest.fixture
def driver(cgroupfs: FakeCgroupfs, host: Host) -> Driver:
    driver = V2Driver(PARENT, str(cgroupfs.root), host=host)
    driver.prepare()
    return driver


def test_prepare_enables_what_is_wanted_on_the_whole_way(
    cgroupfs: FakeCgroupfs, driver: Driver
) -> None:
    for directory in (".", "above", PARENT):
        enabled = cgroupfs.get(f"{directory}/cgroup.subtree_control").split()
        assert set(enabled) == {"cpu", "cpuset", "io", "memory", "pids"}
    cgroupfs.writes.clear()
    driver.prepare()
    assert cgroupfs.writes == []


def test_prepare_moves_processes_out_of_the_inner_node(
    cgroupfs: FakeCgroupfs, driver: Driver
) -> None:
    cgroupfs.set(f"{PARENT}/cgroup.procs", "4711\n")
    driver.prepare()
    assert cgroupfs.writes[-1] == (f"{PARENT}/launcher/cgroup.procs", "4711")


def test_apply_reads_back_what_it_set(cgroupfs: FakeCgroupfs, driver: Driver) -> None:
    cgroup = driver.create("i-1")
    assert cgroup.read() == Limits()
    limits = Limits(
        cpu_max=1.5,
        cpu_weight=50,
        cpuset="0-1",
        memory_max=64 * MIB,
        memory_high=48 * MIB,
        memory_swap=0,
        pids_max=20,
        io=(IoLimit("254:0", rbps=MIB, wiops=10),),
    )
    driver.check(limits)
    assert cgroup.apply(limits) == limits
    assert cgroup.read() == limits
    assert cgroupfs.get(f"{PARENT}/i-1/cpu.max") == "150000 100000"
    assert cgroupfs.get(f"{PARENT}/i-1/io.max") == f"254:0 rbps={MIB} wbps=max riops=max wiops=10"
    assert cgroup.apply(Limits()) == Limits()
    assert cgroupfs.get(f"{PARENT}/i-1/cpuset.cpus") == "\n"


def test_a_refusal_restores_every_file(cgroupfs: FakeCgroupfs, driver: Driver) -> None:
    cgroup = driver.create("i-1")
    before = cgroup.apply(Limits(memory_max=MIB, cpu_max=1))
    cgroupfs.refuse("cpu.weight", OSError(errno.ERANGE, ""))
    with pytest.raises(OSError, match=r"cpu\.weight") as caught:
        cgroup.apply(Limits(memory_max=2 * MIB, memory_high=MIB, cpu_max=2, cpu_weight=5))
    assert caught.value.errno == errno.ERANGE
    assert cgroup.read() == before


def test_memory_under_the_present_use_is_reclaimed_first(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text(f"{8 * MIB}\n")
    before = {MEMORY: "max", HIGH: "max"}
    lower, higher = str(4 * MIB), str(16 * MIB)
    knobs = V2Knobs(str(tmp_path))
    plan = knobs.plan(Limits(memory_max=4 * MIB), dict(before))
    assert plan == [(HIGH, lower), (MEMORY, lower), (HIGH, "max")]
    assert knobs.plan(Limits(memory_max=16 * MIB), dict(before)) == [(MEMORY, higher)]


def test_another_period_is_understood(tmp_path: Path) -> None:
    knobs = V2Knobs(str(tmp_path))
    assert knobs.limits({CPU: "5000 20000"}).cpu_max == 0.25
    assert knobs.plan(Limits(), {CPU: "5000 20000"}) == [(CPU, "max 20000")]


def test_a_device_no_longer_limited_is_freed(tmp_path: Path) -> None:
    (tmp_path / "io.max").write_text("254:0 rbps=1 wbps=max riops=max wiops=max\n")
    knob = Knob("io.max", "254:0")
    knobs = V2Knobs(str(tmp_path))
    free = "rbps=max wbps=max riops=max wiops=max"
    assert knobs.plan(Limits(), knobs.snapshot()) == [(knob, free)]


def test_a_limit_without_its_controller_is_not_dropped_silently(tmp_path: Path) -> None:
    knobs = V2Knobs(str(tmp_path))
    for limits in (
        Limits(pids_max=1),
        Limits(cpu_max=1),
        Limits(cpu_weight=5),
        Limits(cpuset="0"),
        Limits(memory_max=MIB),
        Limits(memory_swap=MIB),
    ):
        with pytest.raises(FileNotFoundError):
            knobs.plan(limits, {})
    assert knobs.plan(Limits(), {}) == []


def test_check_before_prepare_looks_as_far_down_as_it_can(
    cgroupfs: FakeCgroupfs, host: Host
) -> None:
    (cgroupfs.root / "above").mkdir()
    driver = V2Driver(PARENT, str(cgroupfs.root), host=host)
    driver.check(Limits(cpuset="0-3", memory_max=MIB))
    with pytest.raises(UnenforceableError, match="choose from 0-3"):
        driver.check(Limits(cpuset="4"))


def test_an_absent_controller_names_the_fix(cgroupfs: FakeCgroupfs, driver: Driver) -> None:
    cgroupfs.set("cgroup.controllers", "cpu pids")
    with pytest.raises(UnenforceableError, match="cgroup_enable=memory") as caught:
        driver.check(Limits(memory_max=MIB))
    assert caught.value.controller == "memory"


def test_a_controller_that_is_not_handed_down_names_the_file(
    cgroupfs: FakeCgroupfs, host: Host
) -> None:
    cgroupfs.refuse("cgroup.subtree_control", OSError(errno.EBUSY, ""))
    driver = V2Driver(PARENT, str(cgroupfs.root), host=host)
    driver.check(Limits(pids_max=1))
    driver.prepare()
    with pytest.raises(UnenforceableError, match=r"not enabled in .*subtree_control .*busy"):
        driver.check(Limits(pids_max=1))


def test_a_kernel_without_the_file_is_named(cgroupfs: FakeCgroupfs, driver: Driver) -> None:
    (cgroupfs.root / PARENT / "launcher" / "memory.swap.max").unlink()
    driver.check(Limits(memory_swap=0))
    with pytest.raises(UnenforceableError, match="CONFIG_SWAP"):
        driver.check(Limits(memory_swap=MIB))


@pytest.mark.parametrize(
    ("limits", "controller"),
    [
        (Limits(cpuset="9"), "cpuset"),
        (Limits(io=(IoLimit("9:9", rbps=1),)), "io"),
        (Limits(cpu_weight=0), "cpu"),
    ],
)
def test_check_refuses_what_no_version_can(driver: Driver, limits: Limits, controller: str) -> None:
    with pytest.raises(UnenforceableError) as caught:
        driver.check(limits)
    assert caught.value.controller == controller


def test_freeze_and_thaw_write_the_switch(cgroupfs: FakeCgroupfs, driver: Driver) -> None:
    cgroup = driver.create("i-1")
    cgroup.freeze(1)
    assert cgroup.frozen()
    cgroup.thaw()
    assert not cgroup.frozen()
    assert not cgroup.populated()


def test_freezing_that_takes_too_long_is_undone(
    cgroupfs: FakeCgroupfs, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = driver.create("i-1")
    monkeypatch.setattr(
        "nativert.isolation.cgroups.files.read_kept", lambda _: b"populated 1\nfrozen 0\n"
    )
    # A plain file cannot be polled for a notification: it is readable at once.
    with pytest.raises(TimeoutError):
        cgroup.freeze(0.02)
    assert cgroupfs.get(f"{PARENT}/i-1/cgroup.freeze") == "0"


def test_a_killed_cgroup_is_thawed_and_a_missing_one_no_error(
    cgroupfs: FakeCgroupfs, driver: Driver
) -> None:
    cgroup = driver.create("i-1")
    cgroup.freeze(1)
    cgroup.kill()
    assert not cgroup.frozen()
    cgroup.remove()
    cgroup.remove()
    cgroup.kill()
    assert cgroup.pids() == []
    assert not cgroup.populated()


def test_entry_and_usage(cgroupfs: FakeCgroupfs, driver: Driver) -> None:
    cgroup = driver.create("i-1")
    here = cgroupfs.root / PARENT / "i-1"
    (here / "memory.peak").unlink()
    entry = cgroup.entry()
    assert (entry.tasks, entry.into, entry.peak) == ((), str(here), None)
    assert (entry.oom, entry.cpu) == (str(here / "memory.events"), str(here / "cpu.stat"))
    assert entry.pids is None
    (here / "pids.events").write_text("max 0\n")
    assert cgroup.entry().pids == str(here / "pids.events")
    (here / "memory.current").write_text("1000\n")
    (here / "memory.stat").write_text("anon 300\nfile 700\nactive_file 100\ninactive_file 600\n")
    (here / "memory.events").write_text("oom 3\noom_kill 2\noom_group_kill 0\n")
    (here / "cpu.stat").write_text("usage_usec 5\nnr_throttled 4\nthrottled_usec 6\n")
    (here / "io.stat").write_text(
        "254:0 rbytes=10 wbytes=20 rios=1 wios=1 dbytes=9 dios=0\n7:0 rbytes=1 wbytes=2\n"
    )
    usage = cgroup.usage()
    assert (usage.memory_bytes, usage.working_set_bytes, usage.peak_bytes) == (1000, 400, None)
    assert (usage.anon_bytes, usage.file_bytes, usage.swap_bytes) == (300, 700, 0)
    assert (usage.cpu_ns, usage.throttled_ns, usage.throttled_periods) == (5000, 6000, 4)
    assert (usage.io_read_bytes, usage.io_write_bytes, usage.oom_kills) == (11, 22, 2)


def test_a_new_cgroup_ends_as_one(cgroupfs: FakeCgroupfs, driver: Driver) -> None:
    driver.create("i-1")
    assert cgroupfs.get(f"{PARENT}/i-1/memory.oom.group") == "1"
    # What is not ours to end is not touched.
    assert cgroupfs.get(f"{PARENT}/init/memory.oom.group") == "0"


def test_a_cgroup_that_cannot_end_as_one_is_not_made(
    cgroupfs: FakeCgroupfs, driver: Driver
) -> None:
    cgroupfs.refuse("memory.oom.group", OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match=r"memory\.oom\.group"):
        driver.create("i-1")
    assert driver.names() == ()


def test_without_the_memory_controller_a_cgroup_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    root = tmp_path / "bare"
    root.mkdir()
    FakeCgroupfs(root, monkeypatch).mount_unified(root, "pids")
    driver = V2Driver(PARENT, str(root), host=host)
    driver.prepare()
    driver.create("i-1")
    assert driver.names() == ("i-1",)


def test_pressure_is_a_share_of_the_last_seconds(cgroupfs: FakeCgroupfs, driver: Driver) -> None:
    cgroup = driver.create("i-1")
    cgroupfs.set(
        f"{PARENT}/i-1/memory.pressure",
        "some avg10=12.50 avg60=1.00 avg300=0.50 total=9\n"
        "full avg10=3.00 avg60=0.00 avg300=0.00 total=2\n",
    )
    (cgroupfs.root / PARENT / "i-1" / "io.pressure").unlink()
    assert cgroup.pressure() == Pressure(cpu=0.0, memory=0.125, io=None)


def test_pressure_that_is_switched_off_is_unknown(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(path: str) -> str:
        raise OSError(errno.EOPNOTSUPP, "not supported", path)

    cgroup = driver.create("i-1")
    monkeypatch.setattr(files, "read", off)
    assert cgroup.pressure() == Pressure()


SCOPE = "system.slice/n.scope"


def test_in_a_scope_only_the_scope_hands_controllers_down(
    cgroupfs: FakeCgroupfs, host: Host
) -> None:
    (cgroupfs.root / SCOPE).mkdir(parents=True)
    for directory in ("system.slice", SCOPE):
        for name, content in V2_CORE.items():
            cgroupfs.set(f"{directory}/{name}", content)
        cgroupfs.set(f"{directory}/cgroup.controllers", "cpu memory pids")
    cgroupfs.set(f"{SCOPE}/cgroup.procs", "4711\n")
    V2Driver(SCOPE, str(cgroupfs.root), host=host).prepare()
    assert cgroupfs.writes == [
        (f"{SCOPE}/launcher/cgroup.procs", "4711"),
        *((f"{SCOPE}/cgroup.subtree_control", f"+{name}") for name in ("cpu", "memory", "pids")),
    ]


def test_a_scope_that_is_not_there_is_not_made(cgroupfs: FakeCgroupfs, host: Host) -> None:
    (cgroupfs.root / "system.slice").mkdir()
    driver = V2Driver(SCOPE, str(cgroupfs.root), host=host)
    with pytest.raises(FileNotFoundError):
        driver.prepare()
    assert not driver.exists()
    driver.destroy()


def test_a_scope_is_left_to_systemd_and_waited_for(
    cgroupfs: FakeCgroupfs, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cgroupfs.root / SCOPE / "launcher").mkdir(parents=True)
    monkeypatch.setattr(tree, "_GIVEN_DEADLINE_S", 0.05)
    driver = V2Driver(SCOPE, str(cgroupfs.root), host=host)
    with pytest.raises(OSError, match="systemd does not remove it"):
        driver.destroy()
    assert [path.name for path in (cgroupfs.root / SCOPE).iterdir()] == []
