"""The data of an instance as one stream: packed at the source, checked and unpacked at the other.

The stream is a tar that ends with a SHA-256 over all before it. The destination appends each
piece to a file, so that a piece may come twice and little is in memory at either side.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, cast

from nativert.errors import Code, NativertError
from nativert.isolation.syscalls import syncfs
from nativert.runtime.backup import add_tree, tree_bytes
from nativert.runtime.backup_archive import Writer
from nativert.runtime.backup_tree import Tree
from nativert.runtime.migration.messages import CHUNK_BYTES
from nativert.runtime.protocols import Os
from nativert.runtime.users import ID_COUNT

DATA: Final = "data"
CHECKPOINT: Final = "checkpoint"  # What CRIU has written, for migration_kind LIVE.
_PARTS: Final = (DATA, CHECKPOINT)
_NOBODY: Final = 65534


class Pieces:
    """A file to write to, which sends what is written in pieces of CHUNK_BYTES."""

    def __init__(self, send: Callable[[int, bytes], None]) -> None:
        self._send = send
        self._waiting = bytearray()
        self._sum = hashlib.sha256()
        self.sent = 0

    def write(self, data: bytes) -> int:
        """Take *data*; it is sent once there is enough of it."""
        self._waiting += data
        while len(self._waiting) >= CHUNK_BYTES:
            self._pass_on(bytes(self._waiting[:CHUNK_BYTES]))
            del self._waiting[:CHUNK_BYTES]
        return len(data)

    def finish(self) -> str:
        """Send the rest; return the sum of all."""
        if self._waiting:
            self._pass_on(bytes(self._waiting))
            self._waiting.clear()
        return self._sum.hexdigest()

    def _pass_on(self, piece: bytes) -> None:
        self._send(self.sent, piece)
        self._sum.update(piece)
        self.sent += len(piece)


def pack(directory: Path, output: Pieces) -> str:
    """Write data and checkpoint of *directory*; return the sum. Sockets are left out."""
    writer = Writer(cast("BinaryIO", output))
    for part in _PARTS:
        add_tree(writer, directory / part, part)
    writer.finish()
    return output.finish()


def size(directory: Path) -> int:
    """Return the bytes of what `pack` sends of *directory*, as far as they can be counted."""
    return sum(tree_bytes(directory / part) for part in _PARTS)


class Incoming:
    """The stream as far as it is here."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "incoming"

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def add(self, offset: int, piece: bytes) -> int:
        """Append *piece* unless it is here already; return how much is here."""
        present = os.fstat(self._fd).st_size
        if offset != present:
            return present
        done = 0
        while done < len(piece):
            done += os.pwrite(self._fd, piece[done:], offset + done)
        return offset + len(piece)

    def check(self, length: int, told: str) -> None:
        """Refuse a stream that is not the one that was sent; NativertError."""
        found = hashlib.sha256()
        if os.fstat(self._fd).st_size == length:
            with open(os.dup(self._fd), "rb") as file:
                file.seek(0)
                while piece := file.read(CHUNK_BYTES):
                    found.update(piece)
        if found.hexdigest() != told:
            raise NativertError(
                f"the data that came are not those that were sent ({length} bytes)",
                code=Code.MIGRATE,
            )

    def unpack(self, host: Os, first: int, theirs: int) -> None:
        """Put the data in the place of what is there, and have it all on the disk.

        *first* is the first of the instance's host ids here, *theirs* at the source.
        """
        data = self._directory / DATA
        # The directory itself stays: it is mounted in the instance.
        for name in os.listdir(data):
            host.remove_tree(data / name)
        host.remove_tree(self._directory / CHECKPOINT)
        trees = {
            DATA: Tree(self._directory, owner=lambda number: _owner(number, first, theirs)),
            # What is restored reads it as the root of the instance's user namespace.
            CHECKPOINT: Tree(self._directory, owner=lambda _: first),
        }
        with (
            contextlib.ExitStack() as open_trees,
            open(os.dup(self._fd), "rb") as file,
        ):
            for tree in trees.values():
                open_trees.callback(tree.close)
            file.seek(0)
            try:
                _take_out(file, trees)
            except (tarfile.TarError, ValueError, EOFError) as e:
                raise NativertError(f"the data are no archive: {e}", code=Code.MIGRATE) from e
            for tree in trees.values():
                tree.finish()
        syncfs(self._fd)

    def remove(self) -> None:
        """Forget the stream."""
        self.path.unlink(missing_ok=True)


def _take_out(file: BinaryIO, trees: Mapping[str, Tree]) -> None:
    tar: Any
    with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
        for member in tar:
            found = trees.get(member.name.split("/")[0])
            if found is not None:
                _check(member)
                found.put(member, tar.extractfile(member) if member.isreg() else None)
            # Kept by tarfile for each member, and there may be millions.
            tar.members = []


def _check(member: tarfile.TarInfo) -> None:
    kinds = member.isreg() or member.isdir() or member.issym() or member.isfifo()
    if not kinds or {"", ".", ".."} & {*member.name.split("/")}:
        raise NativertError(
            f"{member.name[:200]!r} does not belong into the data", code=Code.MIGRATE
        )


def _owner(number: int, first: int, theirs: int) -> int:
    # Who is nobody inside there is nobody inside here.
    inside = number - theirs
    return first + (inside if 0 <= inside < ID_COUNT else _NOBODY)
