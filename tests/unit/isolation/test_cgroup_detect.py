"""Which driver is chosen, from what is mounted."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_cgroupfs import FakeCgroupfs

from nativert.isolation.cgroups import detect
from nativert.isolation.cgroups.driver import UnenforceableError
from nativert.isolation.cgroups.hierarchies import mounted


@pytest.fixture
def cgroupfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCgroupfs:
    return FakeCgroupfs(tmp_path, monkeypatch)


def test_v1_alone(cgroupfs: FakeCgroupfs) -> None:
    cgroupfs.mount_v1("cpu", "memory", "freezer")
    assert detect("n", mount_root=cgroupfs.root).mode == "v1"


def test_v1_beside_cgroup2(cgroupfs: FakeCgroupfs) -> None:
    cgroupfs.mount_v1("cpu", "memory")
    cgroupfs.mount_unified(cgroupfs.root / "unified")
    assert detect("n", mount_root=cgroupfs.root).mode == "hybrid"


def test_cgroup2_alone(cgroupfs: FakeCgroupfs) -> None:
    cgroupfs.mount_unified(cgroupfs.root, "cpu memory")
    assert detect("n", mount_root=cgroupfs.root).mode == "v2"


def test_nothing_mounted_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UnenforceableError, match="mount -t cgroup2"):
        detect("n", mount_root=tmp_path / "absent")


def test_controllers_mounted_together_share_a_root(cgroupfs: FakeCgroupfs) -> None:
    cgroupfs.mount_v1("cpu,cpuacct", "systemd")
    (cgroupfs.root / "cpu").symlink_to("cpu,cpuacct")
    (cgroupfs.root / "other").mkdir()
    root = str(cgroupfs.root / "cpu,cpuacct")
    assert mounted(cgroupfs.root).v1 == {
        "cpu": root,
        "cpuacct": root,
        "systemd": str(cgroupfs.root / "systemd"),
    }


@pytest.mark.parametrize("parent", ["", "/a", "a/", "a//b", "../a", "a/../b", "."])
def test_a_parent_outside_the_hierarchy_is_refused(cgroupfs: FakeCgroupfs, parent: str) -> None:
    cgroupfs.mount_unified(cgroupfs.root)
    with pytest.raises(ValueError):
        detect(parent, mount_root=cgroupfs.root)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../escape"])
def test_a_name_that_is_a_path_is_refused(cgroupfs: FakeCgroupfs, name: str) -> None:
    cgroupfs.mount_v1("cpu", "memory")
    cgroupfs.mount_unified(cgroupfs.root / "unified")
    driver = detect("n", mount_root=cgroupfs.root)
    with pytest.raises(ValueError):
        driver.open(name)
