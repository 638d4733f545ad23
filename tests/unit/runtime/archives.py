"""Archives made in memory, and a target inside a canary to unpack them to."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from nativert.runtime.policy import UnpackLimits
from nativert.runtime.unpack import Totals, unpack

LIMITS = UnpackLimits(max_bytes=4 << 20, max_files=100, ratio_from_bytes=64 << 10, reserve_bytes=0)


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=kind, linkname=target)


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(*entries: tuple[str, bytes, int], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data, mode in entries:
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = mode << 16
            info.compress_type = method
            archive.writestr(info, data)
    return out.getvalue()


class Place:
    """A target inside a canary: whatever appears or changes around the target is an escape."""

    def __init__(self, directory: Path) -> None:
        self.canary = directory / "canary"
        self.target = self.canary / "deep" / "target"
        self.target.mkdir(parents=True)
        (self.canary / "victim").write_text("untouched")
        (self.canary / "deep" / "victim").write_text("untouched")
        self._before = self._outside()

    def unpack(self, data: bytes, *, rootfs: bool = False, limits: UnpackLimits = LIMITS) -> Totals:
        archive = self.canary.parent / "archive"
        archive.write_bytes(data)
        source = os.open(archive, os.O_RDONLY)
        target = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)
        open_before = len(os.listdir("/proc/self/fd"))
        try:
            return unpack(source, target, limits=limits, rootfs=rootfs)
        finally:
            assert len(os.listdir("/proc/self/fd")) == open_before
            os.close(source)
            os.close(target)

    def check(self) -> None:
        assert self._outside() == self._before
        for path in self.target.rglob("*"):
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
            assert not mode & 0o7022 or stat.S_ISLNK(mode)

    def _outside(self) -> dict[str, bytes | None]:
        return {
            str(path): path.read_bytes() if path.is_file() else None
            for path in sorted(self.canary.rglob("*"))
            if self.target not in path.parents
        }


TREE = (
    entry("./", type=tarfile.DIRTYPE, mode=0o700),
    entry("./bin", type=tarfile.DIRTYPE, mode=0o2777),
    entry("./bin/app", b"#!/bin/sh\n", mode=0o711, mtime=1_000_000_000),
    entry("share/doc/read.me", b"text" * 200, mode=0o600),
    link("bin/also", "app"),
    link("share/up", "../bin/app"),
    link("bin/same", "bin/app", tarfile.LNKTYPE),
    entry("empty", b""),
)
PACKINGS: tuple[Callable[[bytes], bytes], ...] = (bytes, gzip.compress, lzma.compress)
