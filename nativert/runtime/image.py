"""An image made ready to be mounted: fetched, verified, unpacked beside its place, renamed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nativert.runtime import unpack
from nativert.runtime.download import LIMITS
from nativert.runtime.image_cache import Checksum, Fetched, ImageCache
from nativert.runtime.image_errors import ImageError, full_disk
from nativert.runtime.image_uri import check_uri, file_path, last_name, shown_uri
from nativert.runtime.policy import UnpackLimits
from nativert.runtime.protocols import DownloadLimits, Os, Progress
from nativert.runtime.unpack import Format, Totals

CACHE_BYTES: Final = 4 << 30
UNPACK_LIMITS: Final = UnpackLimits()
_DIRECTORY: Final = "directory"
# What `image.format` may say; it is compared with the content, never believed.
_FORMATS: Final = {
    "tar": Format.TAR.value,
    "tar.gz": Format.TAR_GZ.value,
    "tgz": Format.TAR_GZ.value,
    "tar.xz": Format.TAR_XZ.value,
    "txz": Format.TAR_XZ.value,
    "zip": Format.ZIP.value,
    "binary": Format.BINARY.value,
    "bin": Format.BINARY.value,
    "elf": Format.BINARY.value,
    "directory": _DIRECTORY,
    "dir": _DIRECTORY,
}


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A directory to mount read-only; a local directory has no digest and is not counted."""

    path: Path
    digest: str
    bytes: int
    files: int


class Images:
    """The node's images; `directory` holds the downloads and is the node's own."""

    def __init__(
        self,
        directory: Path,
        files: Os,
        *,
        limits: UnpackLimits = UNPACK_LIMITS,
        download: DownloadLimits = LIMITS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._files = files
        self._limits = limits
        self._cache = ImageCache(directory, files, limits=download, max_bytes=cache_bytes)

    def prepare(
        self,
        uri: str,
        *,
        checksum: str,
        format: str,  # noqa: A002 the descriptor's word
        rootfs: bool,
        into: Path,
        progress: Progress | None,
    ) -> Unpacked:
        """Make the image ready in the new directory `into`, or leave nothing there.

        A local directory is used where it is. Raises `ImageError`.
        """
        wanted = Checksum.parse(checksum)
        said = _format(format)
        if check_uri(uri) == "file" and (place := file_path(uri)).is_dir():
            if said not in ("", _DIRECTORY):
                raise ImageError(f"{place} is a directory, the format says {format!r}")
            return _in_place(place, wanted)
        if self._files.exists(into):
            raise ImageError(f"cannot unpack to {into}: it is there already")
        fetched = self._cache.fetch(uri, wanted, progress)
        try:
            totals = self._unpack(uri, fetched, said, into, rootfs=rootfs)
        except ImageError as e:
            raise ImageError(f"{shown_uri(uri)}: {e.message}", hint=e.hint) from e
        finally:
            os.close(fetched.fd)
        return Unpacked(into, fetched.digest, totals.bytes, totals.files)

    def _unpack(self, uri: str, fetched: Fetched, said: str, into: Path, *, rootfs: bool) -> Totals:
        found = unpack.detect(fetched.fd)
        if said not in ("", found.value):
            raise ImageError(f"the image is {found.value}, the format says {said}")
        # Archives grow: this only keeps a hopeless one from being begun.
        if self._files.free_bytes(into.parent) < fetched.bytes + self._limits.reserve_bytes:
            raise ImageError(
                f"not enough space for {fetched.bytes} bytes in {into.parent}",
                hint="free some space where the node keeps its files",
            )
        fresh = into.with_name(f".{into.name}.{os.urandom(6).hex()}")
        try:
            self._files.make_dir(fresh)
            target = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if found is Format.BINARY:
                    name = last_name(uri)
                    totals = unpack.place_binary(fetched.fd, target, name, limits=self._limits)
                else:
                    totals = unpack.unpack(fetched.fd, target, limits=self._limits, rootfs=rootfs)
            finally:
                os.close(target)
            os.rename(fresh, into)
        except OSError as e:
            self._files.remove_tree(fresh)
            raise full_disk(e, "unpack") or ImageError(f"cannot unpack: {e}") from e
        except BaseException:
            self._files.remove_tree(fresh)
            raise
        return totals


def _format(text: str) -> str:
    word = text.strip().lower().lstrip(".")
    if word and word not in _FORMATS:
        raise ImageError(
            f"the format {text[:80]!r} is not known", hint=f"use one of {', '.join(_FORMATS)}"
        )
    return _FORMATS.get(word, "")


def _in_place(place: Path, wanted: Checksum | None) -> Unpacked:
    if not stat.S_ISDIR(os.lstat(place).st_mode):
        raise ImageError(f"{place} is a link to a directory", hint=f"name {place.resolve()} itself")
    if place.resolve() == Path("/"):
        raise ImageError("/ is the host itself, not an image")
    if wanted is not None:
        raise ImageError(
            f"{place} is a directory and cannot be checked", hint="give no checksum, or pack it"
        )
    return Unpacked(place, "", 0, 0)
