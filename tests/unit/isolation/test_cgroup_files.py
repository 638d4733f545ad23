"""Single interface files: what an error says, and all-or-none directories."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from nativert.isolation.cgroups import files


def test_a_missing_file_is_not_created(tmp_path: Path) -> None:
    path = str(tmp_path / "memory.max")
    with pytest.raises(FileNotFoundError) as caught:
        files.write(path, "1048576")
    assert not (tmp_path / "memory.max").exists()
    assert path in str(caught.value)
    assert "1048576" in str(caught.value)


def test_a_shorter_value_leaves_nothing_of_the_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "memory.max"
    path.write_text("9223372036854771712\n")
    files.write(str(path), "max")
    assert files.read(str(path)) == "max"


def test_make_all_removes_what_it_made_when_one_fails(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError):
        files.make_all([str(tmp_path / name) for name in "abc"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_remove_all_goes_on_past_a_busy_directory(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "file").write_text("keeps it busy")
    (tmp_path / "b" / "below").mkdir()
    with pytest.raises(OSError) as caught:
        files.remove_all([str(tmp_path / name) for name in "abc"], deadline_s=0.01)
    assert caught.value.errno == errno.ENOTEMPTY
    assert caught.value.filename == str(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_remove_all_is_safe_twice(tmp_path: Path) -> None:
    files.remove_all([str(tmp_path / "never-made")])
    files.remove_all([str(tmp_path / "never-made")])


def test_without_nested_a_child_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a" / "child").mkdir(parents=True)
    with pytest.raises(OSError):
        files.remove_all([str(tmp_path / "a")], nested=False, deadline_s=0.01)
    assert (tmp_path / "a" / "child").is_dir()
