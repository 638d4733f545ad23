"""The files that images are unpacked from: fetched, verified, and kept by their checksum.

Only what a checksum names is kept: an address alone does not say which bytes it
means. Each file is verified again when it is used, for nothing here is synced.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nativert.runtime.image_errors import ImageError
from nativert.runtime.image_uri import check_uri, shown_uri
from nativert.runtime.protocols import DownloadLimits, Os, Progress

if TYPE_CHECKING:
    import hashlib

_DIGITS: Final = {"sha256": 64, "sha1": 40}


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the bytes of an image must hash to."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Checksum | None:
        """Read `sha256:HEX`, 64 digits, `sha1:HEX` or 40 digits (fog05's); "" is no checksum."""
        if not text:
            return None
        algorithm, colon, digits = text.strip().lower().rpartition(":")
        if not colon:
            algorithm = {64: "sha256", 40: "sha1"}.get(len(digits), "")
        if not re.fullmatch(r"[0-9a-f]+", digits) or len(digits) != _DIGITS.get(algorithm):
            raise ImageError(
                f"the checksum {text[:80]!r} is none that is accepted",
                hint="use sha256: and 64 hexadecimal digits; SHA-1 with 40 works, MD5 does not",
            )
        return cls(algorithm, digits)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified file; `fd` is the caller's to close, the file may already have no name."""

    fd: int
    digest: str
    bytes: int


class ImageCache:
    """One directory of downloads, shared by any number of processes."""

    def __init__(
        self, directory: Path, files: Os, *, limits: DownloadLimits, max_bytes: int
    ) -> None:
        self._directory = directory
        self._files = files
        self._limits = limits
        self._max_bytes = max_bytes

    def fetch(self, uri: str, checksum: Checksum | None, progress: Progress | None) -> Fetched:
        """Return the file, from here or from its address; raises `ImageError`."""
        import hashlib

        # A local file is as near as the cache would be.
        kept = checksum is not None and check_uri(uri) != "file"
        if checksum is not None and kept:
            key = f"{checksum.algorithm}-{checksum.hex}"
        else:
            key = f"uri-{hashlib.sha256(os.fsencode(uri)).hexdigest()[:40]}"
        self._files.make_dir(self._directory, mode=0o700)
        path = self._directory / key
        with self._locked(key):
            fetched = self._kept(path, checksum) if kept else None
            if fetched is None:
                self._files.download(uri, path, limits=self._limits, progress=progress)
                try:
                    fetched = _verified(path, checksum)
                except ImageError as e:
                    os.unlink(path)
                    raise ImageError(f"{shown_uri(uri)}: {e.message}") from e
                except BaseException:
                    os.unlink(path)
                    raise
                if not kept:
                    # The open descriptor keeps the bytes; a crash leaves nothing behind.
                    os.unlink(path)
        try:
            self._evict()
        except BaseException:
            os.close(fetched.fd)
            raise
        return fetched

    def _kept(self, path: Path, checksum: Checksum | None) -> Fetched | None:
        try:
            fetched = _verified(path, checksum)
        except FileNotFoundError:
            return None
        except ImageError:
            os.unlink(path)  # damaged on the disk: fetched anew
            return None
        os.utime(fetched.fd)
        return fetched

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        fd = self._lock(key, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._unlock(key, fd)

    def _lock(self, key: str, operation: int) -> int:
        path = self._directory / f"{key}.lock"
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, operation)
                # The holder before us removed the name: then this lock guards nothing.
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _unlock(self, key: str, fd: int) -> None:
        os.unlink(self._directory / f"{key}.lock")
        os.close(fd)

    def _evict(self) -> None:
        """Remove the least recently used until the cap holds; what is in use stays."""
        found = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.endswith(".lock"):
                    continue
                try:
                    seen = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found.append((seen.st_mtime_ns, entry.name, seen.st_size))
        total = sum(size for _, _, size in found)
        for _, name, size in sorted(found):
            if total <= self._max_bytes:
                return
            key = name.partition(".")[0]
            try:
                fd = self._lock(key, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            try:
                (self._directory / name).unlink(missing_ok=True)
                total -= size
            finally:
                self._unlock(key, fd)


def _verified(path: Path, checksum: Checksum | None) -> Fetched:
    import hashlib

    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.fdopen(fd, "rb", closefd=False) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if checksum is not None:
                file.seek(0)
                same = checksum.algorithm == "sha256"
                # SHA-1 because fog05's descriptors carry it; it proves no more than transport.
                found = sha256 if same else hashlib.file_digest(file, _sha1).hexdigest()
                if found != checksum.hex:
                    raise ImageError(
                        f"wrong checksum: the {checksum.algorithm} is {found}, "
                        f"{checksum.hex} is asked for"
                    )
        return Fetched(fd, f"sha256:{sha256}", os.fstat(fd).st_size)
    except BaseException:
        os.close(fd)
        raise


def _sha1() -> hashlib._Hash:
    import hashlib

    return hashlib.sha1(usedforsecurity=False)
