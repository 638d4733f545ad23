"""Where a node keeps its things, and with which modes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nativert.errors import Code, DescriptorError, NativertError
from nativert.store.paths import Paths, check_uuid

UUID = "0b6f8a5e-2f8e-4d0c-9d59-0b6e0d1f1a01"


def mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_host_is_the_root_without_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATIVERT_ROOT", raising=False)
    paths = Paths()
    assert (str(paths.lib), str(paths.run), str(paths.etc)) == (
        "/var/lib/nativert",
        "/run/nativert",
        "/etc/nativert",
    )


def test_the_variable_moves_all_three_and_the_argument_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NATIVERT_ROOT", str(tmp_path / "a"))
    assert Paths().lib == tmp_path / "a/var/lib/nativert"
    assert Paths().run == tmp_path / "a/run/nativert"
    assert Paths().config == tmp_path / "a/etc/nativert/config.toml"
    assert Paths(tmp_path / "b").lib == tmp_path / "b/var/lib/nativert"


def test_a_relative_root_does_not_follow_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = Paths(Path("node"))
    monkeypatch.chdir("/")
    assert paths.lib == tmp_path / "node/var/lib/nativert"


def test_create_sets_modes_whatever_the_umask_and_twice(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    old = os.umask(0o077)
    try:
        paths.create()
        os.chmod(paths.lib, 0o777)
        paths.create()
    finally:
        os.umask(old)
    assert mode(paths.run) == 0o755
    for directory in (paths.lib, paths.lib / "i", paths.run / "i", paths.locks):
        assert mode(directory) == 0o700, directory


def test_create_says_what_is_in_the_way(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.lib.parent.mkdir(parents=True)
    paths.lib.write_text("not a directory")
    with pytest.raises(NativertError) as caught:
        paths.create()
    assert caught.value.code is Code.STORE
    assert str(paths.lib) in caught.value.hint


def test_a_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(tmp_path)
    paths.create()
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(paths.lib).st_uid + 1)
    with pytest.raises(NativertError) as caught:
        paths.create()
    assert caught.value.code is Code.PERMISSION


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a/b", UUID.upper(), UUID + "\n", UUID[:-1], UUID + "0", "../" + UUID, "-rf"],
)
def test_only_a_uuid_becomes_part_of_a_path(text: str, tmp_path: Path) -> None:
    with pytest.raises(DescriptorError):
        check_uuid(text)
    paths = Paths(tmp_path)
    for method in (paths.instance_run, paths.instance_lib, paths.instance_lock):
        with pytest.raises(DescriptorError):
            method(text)


def test_directories_of_instances_are_listed_and_strangers_left_out(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert paths.instances_run() == []
    paths.create()
    paths.instance_run(UUID).mkdir()
    (paths.run / "i" / "notes").mkdir()
    assert paths.instances_run() == [UUID]
    assert paths.instances_lib() == []
