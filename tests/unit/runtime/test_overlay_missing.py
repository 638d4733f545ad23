"""A kernel that has no overlay file system: told by doctor and by configure."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from nativert.errors import StepError
from nativert.launcher.client import ReportedError
from nativert.runtime import doctor
from nativert.runtime.configure import step


@pytest.mark.parametrize(
    ("filesystems", "modules", "detail"),
    [
        ("nodev\tproc\nnodev\toverlay\n", None, "in the kernel"),
        ("nodev\tproc\n", "kernel/fs/overlayfs/overlay.ko.xz: \n", "a module"),
        ("nodev\tproc\n", "kernel/fs/ext4/ext4.ko: \n", "not in the kernel"),
        ("nodev\tproc\n", None, "not in the kernel"),
    ],
)
def test_doctor_tells_whether_overlays_can_be_mounted(
    monkeypatch: pytest.MonkeyPatch, filesystems: str, modules: str | None, detail: str
) -> None:
    def read(path: Path) -> str:
        if path == Path("/proc/filesystems"):
            return filesystems
        assert path.name == "modules.dep"
        if modules is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return modules

    monkeypatch.setattr(Path, "read_text", read)
    found = doctor._overlay()
    assert (found.ok, found.detail) == (detail != "not in the kernel", detail)
    assert ("modprobe overlay" in found.fix) is not found.ok


def test_configure_tells_how_to_get_it() -> None:
    text = "overlay /etc: No such device"
    refused = ReportedError({"step": "root file system", "errno": errno.ENODEV, "text": text})
    with pytest.raises(StepError) as failed, step("app", "sandbox"):
        raise refused
    assert "modprobe overlay" in failed.value.hint
