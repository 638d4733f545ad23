"""Replacing files: what a reader finds after every kind of interruption."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nativert.store import files


def load(path: Path) -> object:
    return files.read_replaced(path, dict, limit_bytes=1000)


def test_replace_and_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for text in (b'{"n": 1}', b'{"n": 2}'):
        files.replace(path, text)
    assert load(path) == {"n": 2}
    assert os.listdir(tmp_path) == ["f"]
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_writer_killed_between_unlink_and_rename_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    (tmp_path / "f.tmp").write_text('{"n": 2}')
    assert load(path) == {"n": 2}
    # And the next writer, killed in its turn while writing, does not destroy it.
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from nativert.store import files\n"
        "os.write = lambda fd, data: os._exit(9)\n"
        "files.replace(Path(sys.argv[1]), b'{}')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == 9
    assert load(path) == {"n": 2}
    files.replace(path, b'{"n": 3}')
    assert load(path) == {"n": 3}
    assert os.listdir(tmp_path) == ["f"]


def test_half_a_first_write_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "f.tmp").write_text('{"n"')
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "f")


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_file_alone(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    files.replace_durably(path, b"old")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space"):
            files.replace_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_durable_replacement_syncs_the_file_before_and_the_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    calls: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        calls.append("sync " + os.readlink(f"/proc/self/fd/{fd}"))
        real_fsync(fd)

    def rename(source: str, target: Path) -> None:
        calls.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    files.replace_durably(path, b"new")
    assert calls == [f"sync {path}.tmp", "rename", f"sync {tmp_path}"]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"n":' + b"9" * 5000]
)
def test_damage_is_one_kind_of_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(data)
    with pytest.raises(files.DamagedError):
        files.decode(path, dict, limit_bytes=1000 if len(data) < 10_000 else 1 << 20)


def test_a_directory_or_fifo_in_its_place_is_damage_too(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "p")
    for name in ("d", "p"):
        with pytest.raises(files.DamagedError):
            files.decode(tmp_path / name, dict)


def test_put_aside_keeps_every_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    asides = []
    for n in range(3):
        path.write_text(str(n))
        asides.append(files.put_aside(path))
    assert [p.name for p in asides] == ["f.corrupt", "f.corrupt-2", "f.corrupt-3"]
    assert [p.read_text() for p in asides] == ["0", "1", "2"]
