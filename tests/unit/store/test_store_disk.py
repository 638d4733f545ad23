"""A file brought to the disk beside other work: who waits learns how it went."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nativert.isolation import syscalls
from nativert.store import disk as disks
from nativert.store.disk import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    disk = Disk(path)
    yield disk
    disk.close()


def refuse(number: int) -> object:
    def call(*_: object) -> int:
        raise OSError(number, "refused")

    return call


def test_who_asked_waits_once(disk: Disk) -> None:
    first, second = disk.save(), disk.save()
    second.wait()
    first.wait()
    disk.close()
    with pytest.raises(ValueError, match="is closed, or was waited for already"):
        first.wait()


def test_more_than_the_kernel_takes_at_once(disk: Disk) -> None:
    savings = [disk.save() for _ in range(100)]
    for saving in savings:
        saving.wait()


def test_threads_wait_each_for_its_own(disk: Disk) -> None:
    waited: list[int] = []

    def many() -> None:
        for _ in range(50):
            saving = disk.save()
            saving.wait()
            waited.append(saving.number)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waited) == list(range(1, 201))


def test_an_error_is_told_to_who_has_asked(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    real = syscalls.io_getevent

    def bad_first(context: int) -> tuple[int, int]:
        number, error = real(context)
        return number, errno.EIO if number == 1 else error

    monkeypatch.setattr(syscalls, "io_getevent", bad_first)
    first, second = disk.save(), disk.save()
    second.wait()
    with pytest.raises(OSError, match="file") as e:
        first.wait()
    assert e.value.errno == errno.EIO


@pytest.mark.parametrize("number", disks._UNAVAILABLE)
def test_a_kernel_without_it_saves_at_once(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(syscalls, "io_setup", refuse(number))
    saved: list[int] = []
    monkeypatch.setattr(disks.os, "fdatasync", saved.append)
    disk.save().wait()
    assert len(saved) == 1
    monkeypatch.setattr(disks.os, "fdatasync", refuse(errno.ENOSPC))
    saving = disk.save()
    with pytest.raises(OSError, match="file") as e:
        saving.wait()
    assert e.value.errno == errno.ENOSPC


def test_what_else_the_kernel_says_is_told(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "io_setup", refuse(errno.EINVAL))
    with pytest.raises(OSError, match="refused"):
        disk.save()
    disk.close()
    disk.close()


def test_a_file_is_made_longer_part_by_part_and_keeps_what_it_has(disk: Disk) -> None:
    parts = 0
    while disk.lengthen(1 << 20):
        parts += 1
    assert parts == 4
    data = disk._path.read_bytes()
    assert data == b"x" * 10_000 + bytes((1 << 20) - 10_000)
    assert not disk.lengthen(10_000)
    assert disk._path.stat().st_size == 1 << 20
