"""What an instance is shown of the file system, on hosts that are not alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nativert.fdu import descriptor as descriptors
from nativert.isolation.rootfs import Step
from nativert.runtime import root

HELLO = b'{"id": "a", "name": "a", "hypervisor": "BARE", "command": {"binary": "true"}}'


def steps(tmp_path: Path) -> list[Step]:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "hosts").touch()
    sources = root.Sources(data=tmp_path, etc=etc, image=None, script=None, owner=(1000, 1000))
    return root.steps(descriptors.decode(HELLO, source="a"), sources)


def test_etc_is_shown_whole_where_it_has_a_place_for_our_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: path == "/etc/hosts" or there(path))
    targets = [step.target for step in steps(tmp_path) if step.kind == "bind"]
    assert "/etc" in targets


def test_etc_is_taken_apart_where_it_lacks_a_file_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Debian root that mmdebstrap has just made has no /etc/hosts."""
    there = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: path != "/etc/hosts" and there(path))
    shown = {step.target: step for step in steps(tmp_path)}
    assert "/etc" not in shown
    assert shown["/etc/passwd"].source == "/etc/passwd"
    assert shown["/etc/hosts"] == Step("file", str(tmp_path / "etc/hosts"), "/etc/hosts")
