"""What only the unified hierarchy enforces and tells, seen from a running instance."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
import scale
from cgroup_members import make_driver, member, prepared, python, until
from nodes import cgroup as cgroup_of
from nodes import ended, run_inside, start, until_logged
from nodes import until as until_true

from nativert.isolation.cgroups.driver import Cgroup
from nativert.isolation.cgroups.limits import IoLimit, Limits
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.cgroup_v2]

MIB = 1 << 20
SLEEP = "exec sleep 999"
SPIN = "while :; do :; done"


def file(cgroup: Cgroup, name: str) -> Path:
    directory = cgroup.entry().into
    assert directory is not None
    return Path(directory, name)


def event(cgroup: Cgroup, key: str) -> int:
    found = re.search(rf"^{key} (\d+)$", file(cgroup, "memory.events").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_memory_high_reclaims_and_kills_nobody(node: Node) -> None:
    # Page cache, which can be given back: written through a file on the instance's disk.
    write = "dd if=/dev/zero of=/data/f bs=1M count=48 2>/dev/null; sync; echo written; sleep 999"
    app = start(node, shell=write, native={"memory": {"high": "24M", "max": "64M"}})
    until_logged(node, app, "written")
    cgroup = cgroup_of(node, app)
    assert event(cgroup, "high") > 0
    assert (event(cgroup, "oom_kill"), event(cgroup, "max")) == (0, 0)
    assert cgroup.usage().memory_bytes < 32 * MIB
    assert node.get(app).state == "RUNNING"


def test_the_oom_killer_takes_a_whole_instance(node: Node) -> None:
    # The child grows; its parent and its sibling would go on.
    grow = "python3 -S -c 'bytearray(200 << 20)' & sleep 998 & sleep 999"
    app = start(node, shell=grow, native={"memory": {"max": "32M", "swap": 0}})
    end = ended(node.wait(app, timeout_s=scale.LONG_S))
    assert (end.reason, end.signal, end.oom) == ("oom", "SIGKILL", True)
    assert not cgroup_of(node, app).populated()
    # Each run has a verdict of its own.
    node.run(app)
    node.kill(app, signal.SIGTERM)
    assert ended(node.wait(app, timeout_s=scale.LONG_S)).reason in ("signal", "oom")


def test_an_oom_in_a_session_is_an_oom_of_the_instance(node: Node) -> None:
    app = start(node, shell=SLEEP, native={"memory": {"max": "32M", "swap": 0}})
    code, _ = run_inside(node, app, "python3", "-S", "-c", "bytearray(200 << 20)")
    assert code == -signal.SIGKILL or code == 128 + signal.SIGKILL
    assert ended(node.wait(app, timeout_s=scale.LONG_S)).reason == "oom"


def test_io_max_slows_direct_reads_down() -> None:
    disk = next(
        block for block in sorted(Path("/sys/block").iterdir()) if block.name.startswith("nvme")
    )
    device = (disk / "dev").read_text().strip()
    read = ("dd", f"if=/dev/{disk.name}", "of=/dev/null", "bs=1M", "count=6", "iflag=direct")
    with prepared(make_driver("detected")) as driver:
        cgroup = driver.create("i-1")
        cgroup.apply(Limits(io=(IoLimit(device, rbps=2 * MIB),)))
        begun = time.monotonic()
        with member(cgroup, *read) as process:
            assert process.wait(scale.LONG_S) == 0
        assert time.monotonic() - begun > 2
        assert cgroup.usage().io_read_bytes >= 6 * MIB


def test_a_quota_below_a_burst_from_outside_is_refused_and_nothing_changes() -> None:
    with prepared(make_driver("detected")) as driver:
        cgroup = driver.create("i-1")
        before = cgroup.apply(Limits(cpu_max=0.5, pids_max=20))
        burst = file(cgroup, "cpu.max.burst")
        if not burst.exists():
            return  # since Linux 5.15
        assert burst.read_text().strip() == "0"
        burst.write_text("40000")
        assert cgroup.apply(Limits(cpu_max=0.6, pids_max=20)).cpu_max == 0.6
        assert burst.read_text().strip() == "40000"
        assert cgroup.apply(before) == before


def test_pressure_tells_who_waits(node: Node) -> None:
    app = start(node, shell=SPIN, native={"cpu": {"max": 0.1}})
    idle = start(node, shell=SLEEP, name="idle")
    figures = until_true(
        lambda: (f := node.stats([app])[0]).cpu_pressure and f,
        deadline_s=scale.LONG_S,
        what="cpu pressure",
        pause_s=0.2,
    )
    assert 0 < figures.cpu_pressure <= 1
    (quiet,) = node.stats([idle])
    assert (quiet.memory_pressure, quiet.io_pressure) == (0.0, 0.0)
    assert quiet.cpu_pressure is not None


def test_a_frozen_process_dies_without_a_thaw() -> None:
    with prepared(make_driver("detected")) as driver:
        cgroup = driver.create("i-1")
        with python(cgroup, "import time; print('up', flush=True); time.sleep(99)") as process:
            assert process.line() == "up"
            cgroup.freeze(scale.LONG_S)
            assert file(cgroup, "cgroup.freeze").read_text() == "1\n"
            signal.pidfd_send_signal(process._pidfd, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            until(lambda: not cgroup.populated())
