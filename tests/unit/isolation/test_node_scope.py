"""Where a node's cgroups belong, and how systemd is asked for their scope."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_bus import FakeBus

from nativert.isolation.cgroups import scope
from nativert.isolation.cgroups.scope import Place, choose, settle
from nativert.isolation.cgroups.system_bus import SOCKET, BusError

NAME = "nativert-a1b2c3"
UNIT = f"{NAME}.scope"
IN_SCOPE = Place(f"system.slice/{UNIT}", UNIT, "a scope of systemd, which is PID 1")
PID = 4711


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with systemd and v2, without a bus."""
    for directory in ("run/systemd/system", "run/dbus", "proc/1", "sys/fs/cgroup/system.slice"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "proc/1/comm").write_text("systemd\n")
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory\n")
    return tmp_path


@pytest.fixture
def bus(host: Path) -> Iterator[FakeBus]:
    fake = FakeBus(host / SOCKET)
    yield fake
    fake.close()


def mount_v1(host: Path, *names: str) -> None:
    (host / "sys/fs/cgroup/cgroup.controllers").unlink(missing_ok=True)
    for name in names:
        (host / "sys/fs/cgroup" / name / "system.slice").mkdir(parents=True)
        (host / "sys/fs/cgroup" / name / "tasks").touch()


# -- the decision --------------------------------------------------------------------------


def test_systemd_that_answers_has_the_node_in_a_scope(host: Path, bus: FakeBus) -> None:
    assert choose(NAME, host=host) == IN_SCOPE


@pytest.mark.parametrize("unified", [False, True])
def test_v1_and_hybrid_too(host: Path, bus: FakeBus, *, unified: bool) -> None:
    mount_v1(host, "memory", "freezer", "systemd")
    if unified:
        (host / "sys/fs/cgroup/unified/system.slice").mkdir(parents=True)
        (host / "sys/fs/cgroup/unified/cgroup.controllers").touch()
    assert choose(NAME, host=host) == IN_SCOPE
    shutil.rmtree(host / "sys/fs/cgroup/systemd/system.slice")
    assert choose(NAME, host=host).unit is None


def own_cgroup(host: Path) -> str:
    place = choose(NAME, host=host)
    assert (place.parent, place.unit) == (NAME, None)
    return place.why


def test_another_init(host: Path, bus: FakeBus) -> None:
    (host / "run/systemd/system").rmdir()
    assert own_cgroup(host) == "systemd is not PID 1"


def test_a_container_that_sees_run_of_its_host(host: Path, bus: FakeBus) -> None:
    (host / "proc/1/comm").write_text("sh\n")
    assert own_cgroup(host) == "systemd is not PID 1 here, sh is"
    (host / "proc/1/comm").unlink()
    assert own_cgroup(host) == "systemd is not PID 1 here, nothing visible is"


def test_a_container_with_other_cgroups(host: Path, bus: FakeBus) -> None:
    (host / "sys/fs/cgroup/system.slice").rmdir()
    assert own_cgroup(host) == "the cgroups of systemd are not visible here"


def test_v1_without_the_hierarchy_of_systemd(host: Path, bus: FakeBus) -> None:
    mount_v1(host, "memory", "freezer")
    assert own_cgroup(host) == "the cgroups of systemd are not visible here"


def test_no_bus(host: Path) -> None:
    assert "does not answer: No such file" in own_cgroup(host)


def test_a_socket_that_nobody_listens_at(host: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(host / SOCKET))
        assert "does not answer: Connection refused" in own_cgroup(host)


def test_instances_in_a_cgroup_of_their_own_keep_it(host: Path, bus: FakeBus) -> None:
    top = host / "sys/fs/cgroup" / NAME
    for leaf in ("launcher", "init"):
        (top / leaf).mkdir(parents=True)
    # An empty one says nothing: it is what an earlier boot of the bus has left.
    assert choose(NAME, host=host).unit == UNIT
    (top / "init" / "cgroup.procs").write_text("4711\n")
    assert "made before" in own_cgroup(host)
    (top / "init" / "cgroup.procs").write_text("")
    (top / "i-1").mkdir()
    assert "made before" in own_cgroup(host)


def test_where_systemd_is_not_jeepney_is_not_imported() -> None:
    code = (
        "import sys; import nativert.runtime.context, nativert.isolation.cgroups.scope as s;"
        "s.choose('n'); sys.exit('jeepney' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# -- systemd ---------------------------------------------------------------------------------


class Prepare:
    """Stands for Driver.prepare."""

    def __init__(self, *refusals: OSError) -> None:
        self.calls = 0
        self._refusals = list(refusals)

    def __call__(self) -> None:
        self.calls += 1
        if self._refusals:
            raise self._refusals.pop(0)


def test_without_a_scope_only_the_cgroup_is_made(tmp_path: Path) -> None:
    prepare = Prepare()
    settle(Place(NAME, None, ""), PID, prepare, host=tmp_path)
    assert prepare.calls == 1


def test_the_scope_is_made_around_the_process(host: Path, bus: FakeBus) -> None:
    prepare = Prepare()
    at_start: list[int] = []
    bus.on_start = lambda _unit, _pid: at_start.append(prepare.calls)
    settle(IN_SCOPE, PID, prepare, host=host)
    (asked,) = bus.asked("StartTransientUnit")
    assert asked[0] == UNIT
    assert dict(asked[2]) == {
        "Description": ("s", f"Instances of the nativert node {NAME}"),
        "Slice": ("s", "system.slice"),
        "Before": ("as", ["nativert-shutdown.service"]),
        "PIDs": ("au", [PID]),
        "Delegate": ("b", True),
        "KillMode": ("s", "mixed"),
        "CollectMode": ("s", "inactive-or-failed"),
        "TasksMax": ("t", 2**64 - 1),
    }
    assert (at_start, prepare.calls) == ([0], 1)
    assert bus.asked("AttachProcessesToUnit") == []


def test_the_end_of_the_job_may_be_told_before_its_name(host: Path, bus: FakeBus) -> None:
    bus.early_signal = True
    settle(IN_SCOPE, PID, Prepare(), host=host)


def test_a_scope_that_systemd_cannot_start_is_told(host: Path, bus: FakeBus) -> None:
    bus.result = "failed"
    prepare = Prepare()
    with pytest.raises(BusError, match="ended as 'failed'"):
        settle(IN_SCOPE, PID, prepare, host=host)
    assert prepare.calls == 0


def test_a_living_scope_is_joined(host: Path, bus: FakeBus) -> None:
    bus.units = {UNIT}
    prepare, joined = Prepare(), []
    bus.on_attach = lambda unit, pid: joined.append((unit, pid, prepare.calls))
    settle(IN_SCOPE, PID, prepare, host=host)
    assert joined == [(UNIT, PID, 1)]


def test_a_scope_about_to_go_is_waited_for_and_made_anew(host: Path, bus: FakeBus) -> None:
    bus.units, bus.inactive = {UNIT}, {UNIT}
    rounds = []

    def prepare() -> None:
        rounds.append("prepare")
        if len(rounds) == 1:
            # The directory went between the answer and our look.
            raise FileNotFoundError(2, "gone")
        bus.units.discard(UNIT)

    settle(IN_SCOPE, PID, prepare, host=host)
    assert len(rounds) == 3
    assert len(bus.asked("StartTransientUnit")) == 3
    assert len(bus.asked("AttachProcessesToUnit")) == 1


def test_a_scope_that_does_not_go_is_told(
    host: Path, bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope, "_TIMEOUT_S", 0.2)
    bus.units, bus.inactive = {UNIT}, {UNIT}
    with pytest.raises(OSError, match=r"not active|does not answer"):
        settle(IN_SCOPE, PID, Prepare(), host=host)


@pytest.mark.parametrize("method", ["Hello", "Subscribe", "StartTransientUnit"])
def test_a_bus_that_hangs_is_not_waited_for_long(
    host: Path, bus: FakeBus, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(scope, "_TIMEOUT_S", 0.2)
    bus.mute = {method}
    with pytest.raises(TimeoutError, match="systemd does not answer"):
        settle(IN_SCOPE, PID, Prepare(), host=host)


def test_no_descriptor_is_left(host: Path, bus: FakeBus) -> None:
    bus.result = "failed"
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(BusError):
            settle(IN_SCOPE, PID, Prepare(), host=host)
    # The fake's own end of the last connection may still be closing.
    assert len(os.listdir("/proc/self/fd")) <= before + 1
