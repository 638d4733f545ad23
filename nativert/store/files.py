"""Files replaced in one step: durably, or for this boot only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

_T = TypeVar("_T")


class DamagedError(ValueError):
    """A file does not hold what its writer wrote."""


def replace(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put *data* in place of *path* by rename(2); a power cut may lose it.

    The temporary name is fixed, so that a killed writer leaves at most one file and the
    next one uses it again: writers of one path must exclude each other.
    """
    _replace(path, data, mode, durable=False)


def replace_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put *data* in place of *path*; after return it survives a power cut.

    On failure, a full disk included, the old file is intact and nothing is left beside it.
    """
    _replace(path, data, mode, durable=True)
    sync_directory(path.parent)


def _replace(path: Path, data: bytes, mode: int, *, durable: bool) -> None:
    temporary = f"{path}.tmp"
    # O_NOFOLLOW: whoever could plant a link here must not choose what is overwritten.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass  # the first error is the one to report; the next writer uses the name again
        raise


def sync_directory(path: Path) -> None:
    """Make the renames and unlinks in *path* survive a power cut; see fsync(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def decode(path: Path, kind: type[_T], *, limit_bytes: int = 16 << 20) -> _T:
    """Return what the JSON file *path* holds, as *kind*.

    Raises FileNotFoundError, and DamagedError for content that cannot be what was written.
    Other OSErrors (EMFILE, EIO) say nothing about the content and stay what they are.
    """
    try:
        return msgspec.json.decode(read(path, limit_bytes=limit_bytes), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IsADirectoryError) as e:
        raise DamagedError(f"{path}: {e}") from e


def read(path: Path, *, limit_bytes: int = 16 << 20) -> bytes:
    """Return the bytes of *path*; more than *limit_bytes* is a DamagedError."""
    # O_NONBLOCK: a FIFO in the place of the file must not hang the reader.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    chunks: list[bytes] = []
    size = 0
    try:
        while chunk := os.read(fd, 1 << 16):
            chunks.append(chunk)
            size += len(chunk)
            if size > limit_bytes:
                raise DamagedError(f"{path}: more than {limit_bytes} bytes")
    finally:
        os.close(fd)
    return b"".join(chunks)


def put_aside(path: Path) -> Path:
    """Rename a damaged file or directory to ``*.corrupt`` and return the new path.

    Of several, the first ones are kept under numbers: the oldest evidence is the best.
    """
    aside = Path(f"{path}.corrupt")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = Path(f"{path}.corrupt-{number}")
    os.rename(path, aside)
    return aside
