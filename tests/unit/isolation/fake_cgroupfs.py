"""A directory that behaves like cgroupfs where it matters: new cgroups have interface files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nativert.isolation.cgroups import files

V1_FILES = {
    "cpu": {
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "-1",
        "cpu.shares": "1024",
        "cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0",
    },
    "cpuacct": {"cpuacct.usage": "0"},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.memsw.limit_in_bytes": "9223372036854771712",
        "memory.usage_in_bytes": "0",
        "memory.max_usage_in_bytes": "0",
        "memory.stat": "cache 0\nrss 0",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0",
    },
    "pids": {"pids.max": "max", "pids.current": "0"},
    "blkio": {
        "blkio.throttle.read_bps_device": "",
        "blkio.throttle.write_bps_device": "",
        "blkio.throttle.read_iops_device": "",
        "blkio.throttle.write_iops_device": "",
        "blkio.throttle.io_service_bytes_recursive": "Total 0",
    },
    "freezer": {"freezer.state": "THAWED"},
    "systemd": {},
}
V2_CORE = {
    "cgroup.procs": "",
    "cgroup.events": "populated 0\nfrozen 0",
    "cgroup.freeze": "0",
    "cpu.stat": "usage_usec 0\nuser_usec 0\nsystem_usec 0",
    "cgroup.controllers": "",
    "cgroup.subtree_control": "",
    "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0",
    "io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0",
}
V2_FILES = {
    "cpu": {"cpu.max": "max 100000", "cpu.weight": "100"},
    "cpuset": {"cpuset.cpus": "", "cpuset.cpus.effective": "0-3"},
    "io": {"io.max": "", "io.stat": ""},
    "memory": {
        "memory.max": "max",
        "memory.high": "max",
        "memory.swap.max": "max",
        "memory.current": "0",
        "memory.swap.current": "0",
        "memory.peak": "0",
        "memory.stat": "anon 0\nfile 0",
        "memory.oom.group": "0",
        "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0",
    },
    "pids": {"pids.max": "max", "pids.current": "0"},
}


class FakeCgroupfs:
    """Stands in for the mounted hierarchies; `refuse` makes one write fail."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.writes: list[tuple[str, str]] = []
        self._unified: Path | None = None
        self._refusals: dict[str, OSError] = {}
        self._write = files.write
        monkeypatch.setattr(files, "make_dir", self._make_dir)
        monkeypatch.setattr(files, "remove_dir", self._remove_dir)
        monkeypatch.setattr(files, "write", self._record)

    def mount_v1(self, *hierarchies: str) -> None:
        for name in hierarchies:
            directory = self.root / name
            directory.mkdir()
            self._populate(directory)
            if name == "cpuset":
                (directory / "cpuset.cpus").write_text("0-3\n")
                (directory / "cpuset.mems").write_text("0\n")

    def mount_unified(self, directory: Path, controllers: str = "") -> None:
        directory.mkdir(exist_ok=True)
        self._unified = directory
        for name, content in V2_CORE.items():
            (directory / name).write_text(content)
        (directory / "cgroup.controllers").write_text(controllers)
        (directory / "cpuset.cpus.effective").write_text("0-3\n")

    def refuse(self, file: str, error: OSError) -> None:
        self._refusals[file] = error

    def set(self, path: str, content: str) -> None:
        (self.root / path).write_text(content)

    def get(self, path: str) -> str:
        return (self.root / path).read_text()

    def _make_dir(self, path: str) -> None:
        os.mkdir(path)
        self._populate(Path(path))

    def _remove_dir(self, path: str) -> None:
        if files.subdirectories(path):
            raise OSError(16, "Device or resource busy", path)
        if not os.path.isdir(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        shutil.rmtree(path)

    def _record(self, path: str, value: str) -> None:
        self.writes.append((os.path.relpath(path, self.root), value))
        name = os.path.basename(path)
        if name in self._refusals:
            raise files.refusal(self._refusals[name], value, path)
        if name == "cgroup.subtree_control":
            controller = value.removeprefix("+")
            old = self.get(os.path.relpath(path, self.root)).split()
            value = " ".join([*old, controller])
            for child in files.subdirectories(os.path.dirname(path)):
                self._hand_down(Path(path).with_name(child), controller)
        self._write(path, value)
        if name == "cgroup.freeze":
            events = Path(path).with_name("cgroup.events")
            events.write_text(f"populated 0\nfrozen {value}\n")

    def _hand_down(self, directory: Path, controller: str) -> None:
        available = directory / "cgroup.controllers"
        available.write_text(f"{available.read_text()} {controller}".strip())
        for name, content in V2_FILES.get(controller, {}).items():
            (directory / name).write_text(content)

    def _populate(self, directory: Path) -> None:
        contents: dict[str, str] = {}
        if self._unified is not None and directory.is_relative_to(self._unified):
            contents |= V2_CORE
            enabled = (directory.parent / "cgroup.subtree_control").read_text()
            contents["cgroup.controllers"] = enabled
            for controller in enabled.split():
                contents |= V2_FILES.get(controller, {})
        else:
            hierarchy = directory.relative_to(self.root).parts[0]
            contents |= {"tasks": "", "cgroup.procs": ""}
            for controller in hierarchy.split(","):
                contents |= V1_FILES[controller]
        for name, content in contents.items():
            (directory / name).write_text(content)
