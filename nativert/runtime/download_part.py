"""The file that a download writes to, and what is known of the version it comes from.

`TARGET.part` becomes `TARGET` when it is whole. After a failure it stays only if
the server serves ranges; then `TARGET.part.json` names the version, for If-Range.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from nativert.runtime.image_errors import ImageError
from nativert.runtime.protocols import DownloadLimits, Progress

RESERVE_BYTES: Final = 64 << 20  # stays free on the target's file system
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class BrokenTransferError(Exception):
    """A transfer broke off; `retry_s` says after how long the same request may do, None: not."""

    def __init__(self, message: str, *, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_s = retry_s


@dataclass
class _Note:
    uri_sha256: str = ""  # a URI may hold a signature
    version: str = ""
    total: int | None = None
    # Nothing is synced: after a power cut the bytes of a part may be others than were written.
    boot_id: str = ""


class Part:
    """A file in the making; counts, caps and reports its bytes."""

    def __init__(
        self,
        target: Path,
        uri: str,
        limits: DownloadLimits,
        progress: Progress | None,
        reserve_bytes: int,
    ) -> None:
        self._target = target
        self._path = target.with_name(f"{target.name}.part")
        self._note_path = target.with_name(f"{target.name}.part.json")
        self._limits = limits
        self._progress = progress
        self._reserve_bytes = reserve_bytes
        import hashlib

        self._uri_sha256 = hashlib.sha256(os.fsencode(uri)).hexdigest()
        self._boot_id = _BOOT_ID.read_text().strip()
        self._done = False
        self._note = self._recall()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self.resumable = bool(self._note.version)
        self.length = os.fstat(self._fd).st_size if self.resumable else 0

    def range_headers(self) -> dict[str, str]:
        """Return the headers that ask for what is missing of the same version."""
        if not self.length:
            return {}
        return {"Range": f"bytes={self.length}-", "If-Range": self._note.version}

    def restart(self) -> None:
        """Forget what has come so far."""
        # The note first: it must never speak for the bytes of another version.
        _unlink(self._note_path)
        os.ftruncate(self._fd, 0)
        self.length = 0
        self._note = _Note()
        self.resumable = False

    def begin(self, *, total: int | None, version: str, ranges: bool) -> None:
        """Start from the first byte; refuses at once what will be too large."""
        self.restart()
        self._check_total(total)
        self._note = _Note(self._uri_sha256, version, total, self._boot_id)
        self.resumable = ranges and _is_version(version)
        if self.resumable:
            self._note_path.write_text(json.dumps(asdict(self._note)), encoding="ascii")

    def go_on(self, start: int, total: int | None) -> None:
        """Continue behind what has come; the server's range must begin exactly there."""
        if start != self.length or (self._note.total is not None and total != self._note.total):
            self.restart()
            raise BrokenTransferError(
                "the server answers with another range than the one asked for", retry_s=0
            )
        self._check_total(total)
        self._note.total = total

    def write(self, data: bytes) -> None:
        """Append, within the size cap."""
        if self.length + len(data) > self._limits.max_bytes:
            self.resumable = False
            raise ImageError(f"the file is larger than {self._limits.max_bytes} bytes")
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, self.length)
            self.length += count
            view = view[count:]
        if self._progress is not None:
            self._progress(self.length, self._note.total)

    def check_whole(self) -> None:
        """Compare with the claimed length; raises `BrokenTransferError` where bytes are missing."""
        total = self._note.total
        if total is not None and self.length != total:
            raise BrokenTransferError(f"truncated: {self.length} of {total} bytes came")

    def finish(self) -> None:
        """Put the whole file in place."""
        os.rename(self._path, self._target)
        self._done = True

    def close(self) -> None:
        """Remove what is left, unless a later call can go on from it."""
        os.close(self._fd)
        if self._done:
            _unlink(self._note_path)
        elif not (self.resumable and self.length):
            _unlink(self._note_path)
            _unlink(self._path)

    def _recall(self) -> _Note:
        try:
            note = _Note(**json.loads(self._note_path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return _Note()
        mine = (note.uri_sha256, note.boot_id) == (self._uri_sha256, self._boot_id)
        counted = note.total is None or type(note.total) is int
        return note if mine and counted and _is_version(note.version) else _Note()

    def _check_total(self, total: int | None) -> None:
        if total is None:
            return
        if total > self._limits.max_bytes:
            self.resumable = False
            raise ImageError(
                f"the file is {total} bytes long, the most is {self._limits.max_bytes}"
            )
        room = os.fstatvfs(self._fd)
        if total - self.length + self._reserve_bytes > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_version(version: object) -> bool:
    # It goes into a header as it is.
    return (
        isinstance(version, str) and version.isascii() and version.isprintable() and version != ""
    )


def _unlink(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
