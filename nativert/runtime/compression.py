"""The bytes of an archive, decompressed as a stream that stops at its limits.

Memory is bounded by construction: input and output go by chunks, and xz gets a
memory limit, because its header may ask for a dictionary of 4 GiB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from nativert.runtime.image_errors import ImageError
from nativert.runtime.policy import UnpackLimits

CHUNK: Final = 256 << 10
# xz -9 needs 65 MiB to decompress.
_XZ_MEMORY_BYTES: Final = 128 << 20


class _Codec(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def feed(self, data: bytes) -> bytes: ...

    def hungry(self) -> bool: ...


class _Gzip:
    def __init__(self) -> None:
        import zlib

        self._z = zlib.decompressobj(wbits=31)  # 31: gzip header and CRC, 32 KiB window
        self._errors = zlib.error

    @property
    def eof(self) -> bool:
        return self._z.eof

    @property
    def unused_data(self) -> bytes:
        return self._z.unused_data

    def feed(self, data: bytes) -> bytes:
        try:
            return self._z.decompress(self._z.unconsumed_tail + data, CHUNK)
        except self._errors as e:
            raise ImageError(f"the gzip data is damaged: {e}") from e

    def hungry(self) -> bool:
        return not self._z.unconsumed_tail


class _Xz:
    def __init__(self) -> None:
        import lzma

        self._xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        self._errors = lzma.LZMAError

    @property
    def eof(self) -> bool:
        return self._xz.eof

    @property
    def unused_data(self) -> bytes:
        return self._xz.unused_data

    def feed(self, data: bytes) -> bytes:
        try:
            return self._xz.decompress(data, CHUNK)
        except self._errors as e:
            raise ImageError(
                f"the xz data is damaged or needs more than {_XZ_MEMORY_BYTES >> 20} MiB "
                f"to decompress: {e}"
            ) from e

    def hungry(self) -> bool:
        return self._xz.needs_input


class Stream:
    """A forward-only reader over one archive; counts what goes in and what comes out."""

    def __init__(self, fd: int, limits: UnpackLimits, codec: str = "") -> None:
        self._fd = fd
        self._limits = limits
        self._taken = 0
        self._given = 0
        self._buffer = b""
        self._at = 0
        codecs: dict[str, Callable[[], _Codec]] = {"gz": _Gzip, "xz": _Xz}
        self._chunks = self._unpacked(codecs[codec]) if codec else self._raw()

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes, fewer only at the end of the archive."""
        parts = list(self.pieces(size, whole=False))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self, size: int, *, whole: bool = True) -> Iterator[bytes]:
        """Yield `size` bytes in pieces; with `whole`, an early end raises `ImageError`."""
        while size:
            if self._at == len(self._buffer):
                self._buffer, self._at = next(self._chunks, b""), 0
                if not self._buffer:
                    if whole:
                        raise ImageError("the archive is truncated: a file ends early")
                    return
            piece = self._buffer[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> None:
        """Pass over `size` bytes; raises `ImageError` at an early end."""
        for _ in self.pieces(size):
            pass

    def drain(self) -> None:
        """Read to the end: only there does a compressed stream prove its check sum."""
        self._buffer, self._at = b"", 0
        for _ in self._chunks:
            pass

    def _raw(self) -> Iterator[bytes]:
        while data := os.read(self._fd, CHUNK):
            self._taken += len(data)
            yield self._counted(data)

    def _unpacked(self, make: Callable[[], _Codec]) -> Iterator[bytes]:
        codec = make()
        source = b""
        started = False
        while True:
            if not source and codec.hungry():
                source = os.read(self._fd, CHUNK)
                self._taken += len(source)
                if not source:
                    if started:
                        raise ImageError("the archive is truncated: its compressed data ends early")
                    return
            if not started:
                # Padding between and after the streams of one file is NULs.
                source = source.lstrip(b"\0")
                if not source:
                    continue
                started = True
            data = codec.feed(source)
            source = b""
            if data:
                yield self._counted(data)
            if codec.eof:
                source = codec.unused_data
                codec = make()
                started = False

    def _counted(self, data: bytes) -> bytes:
        self._given += len(data)
        if self._given > self._limits.max_bytes:
            raise ImageError(f"the image unpacks to more than {self._limits.max_bytes} bytes")
        check_ratio(self._given, self._taken, self._limits)
        return data


def check_ratio(given: int, taken: int, limits: UnpackLimits) -> None:
    """Refuse what grows like a bomb: `given` bytes out of `taken` compressed ones."""
    if given > limits.ratio_from_bytes and given > taken * limits.max_ratio:
        raise ImageError(
            f"the image unpacks to more than {limits.max_ratio} times its size: a bomb",
            hint="pack without compression if it is meant to",
        )
