"""An archive unpacked beneath one directory, and nowhere else.

Functions over descriptors: the archive's and the target directory's. The policy
judges what a member claims; openat2(2) holds every path beneath the target
whatever the claims were; the limits stop the stream where it stands. What a
failed call leaves in the target is the caller's to remove.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from nativert.isolation.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)
from nativert.runtime import tar_archive, zip_archive
from nativert.runtime.compression import Stream, check_ratio
from nativert.runtime.image_errors import ImageError, full_disk
from nativert.runtime.policy import Kind, Policy, UnpackLimits, refuse, split_name

_BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_SPACE_STEP_BYTES: Final = 8 << 20
_LAST_SECOND: Final = 1 << 33  # what ext4 can keep


class Format(enum.Enum):
    """What an image is, told by its first bytes."""

    TAR = "tar"
    TAR_GZ = "tar.gz"
    TAR_XZ = "tar.xz"
    ZIP = "zip"
    BINARY = "binary"


_MAGIC: Final = (
    (b"\x1f\x8b", Format.TAR_GZ),
    (b"\xfd7zXZ\0", Format.TAR_XZ),
    (b"PK\3\4", Format.ZIP),
    (b"PK\5\6", Format.ZIP),
    (b"\x7fELF", Format.BINARY),
    (b"#!", Format.BINARY),
)
_UNSUPPORTED: Final = (
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf", "7z"),
    (b"hsqs", "squashfs"),
    (b"QFI\xfb", "qcow2"),
)


@dataclass(frozen=True, slots=True)
class Totals:
    """What was unpacked: bytes of file contents, number of entries."""

    bytes: int
    files: int


def detect(fd: int) -> Format:
    """Tell what an image is by its content; raises `ImageError` for anything else."""
    head = os.pread(fd, tar_archive.BLOCK, 0)
    if not head:
        raise ImageError("the image is empty")
    # A tar may begin with any name, so its check sum decides before the magic numbers.
    if tar_archive.is_header(head):
        return Format.TAR
    for magic, found in _MAGIC:
        if head.startswith(magic):
            return found
    for magic, word in _UNSUPPORTED:
        if head.startswith(magic):
            raise ImageError(f"the image is {word}", hint="use tar, tar.gz, tar.xz or zip")
    raise ImageError(
        f"the image is no archive and no program: it begins with {head[:16]!r}",
        hint="use tar, tar.gz, tar.xz, zip, an ELF program or a script with #!",
    )


def unpack(archive: int, target: int, *, limits: UnpackLimits, rootfs: bool) -> Totals:
    """Unpack a tar or zip archive into the empty directory `target` (both descriptors)."""
    found = detect(archive)
    if found is Format.BINARY:
        raise ImageError("the image is a program, not an archive")
    policy = Policy(limits, rootfs=rootfs)
    os.lseek(archive, 0, os.SEEK_SET)
    with Tree(target, policy, limits) as tree:
        try:
            if found is Format.ZIP:
                _unpack_zip(archive, tree, policy, limits)
            else:
                _unpack_tar(archive, found, tree, policy, limits)
        except OSError as e:
            if (full := full_disk(e, "unpack the image")) is not None:
                raise full from e
            raise
    if not policy.files:
        raise ImageError("the image holds no files")
    return Totals(bytes=policy.bytes, files=policy.files)


def place_binary(program: int, target: int, name: str, *, limits: UnpackLimits) -> Totals:
    """Put a single program at bin/`name` beneath the directory `target` (both descriptors)."""
    if len(split_name(name, max_depth=1)) != 1:
        raise ImageError(f"{name!r} is no name for a program")
    policy = Policy(limits, rootfs=False)
    os.lseek(program, 0, os.SEEK_SET)
    stream = Stream(program, limits)
    size = os.fstat(program).st_size
    with Tree(target, policy, limits) as tree:
        try:
            tree.file(("bin", name), name, 0o755, None, stream.pieces(size))
        except OSError as e:
            if (full := full_disk(e, "store the program")) is not None:
                raise full from e
            raise
    return Totals(bytes=policy.bytes, files=1)


def _unpack_tar(
    archive: int, found: Format, tree: Tree, policy: Policy, limits: UnpackLimits
) -> None:
    codec = {Format.TAR_GZ: "gz", Format.TAR_XZ: "xz"}.get(found, "")
    stream = Stream(archive, limits, codec)
    # Long names and pax records are headers of their own before a member's.
    for member in tar_archive.members(stream, max_headers=4 * limits.max_files + 1):
        parts = policy.admit(member)
        if member.kind is Kind.FILE:
            contents = stream.pieces(member.size)
            tree.file(parts, member.name, member.mode, member.mtime, contents)
        elif member.kind is Kind.DIRECTORY:
            tree.directory(parts)
        elif member.kind is Kind.SYMLINK:
            tree.symlink(parts, member.link)
        else:
            tree.hardlink(policy.hardlink_source(member, parts), parts)


def _unpack_zip(archive: int, tree: Tree, policy: Policy, limits: UnpackLimits) -> None:
    where = zip_archive.directory(archive)
    taken = os.fstat(archive).st_size
    for entry in zip_archive.entries(archive, where):
        member = entry.member
        if member.kind is Kind.SYMLINK:
            member = zip_archive.with_target(archive, entry)
        parts = policy.admit(member)
        if member.kind is Kind.FILE:
            # Entries may share data, so the whole archive is what the ratio counts against.
            check_ratio(policy.bytes + member.size, taken, limits)
            tree.file(parts, member.name, member.mode, None, zip_archive.contents(archive, entry))
        elif member.kind is Kind.DIRECTORY:
            tree.directory(parts)
        else:
            tree.symlink(parts, member.link)


class Tree:
    """The target directory; every path is opened beneath it, through no link and no mount."""

    def __init__(self, root: int, policy: Policy, limits: UnpackLimits) -> None:
        self._root = root
        self._policy = policy
        self._limits = limits
        self._parent: tuple[tuple[str, ...], int] | None = None
        self._unchecked = _SPACE_STEP_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def directory(self, parts: tuple[str, ...]) -> None:
        """Make a directory, and those above it; one that is there stays."""
        self._open(parts)

    def file(
        self,
        parts: tuple[str, ...],
        name: str,
        mode: int,
        mtime: int | None,
        contents: Iterable[bytes],
    ) -> None:
        """Write a file; an earlier one of the same path is replaced, not written through."""
        parent = self._open(parts[:-1])
        self._clear(parent, parts[-1])
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = openat2(parent, parts[-1], flags, 0o600, _BENEATH)
        try:
            for data in contents:
                self._policy.grow(name, len(data))
                self._check_space(len(data))
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            # Root's on the host: the instance's ids are neither owner nor group.
            os.fchmod(fd, 0o755 if mode & 0o111 else 0o644)
            if mtime is not None:
                # Python and make compare times of files, so they are kept.
                seconds = min(max(mtime, 0), _LAST_SECOND)
                os.utime(fd, (seconds, seconds))
        finally:
            os.close(fd)

    def symlink(self, parts: tuple[str, ...], target: str) -> None:
        """Make a symbolic link; nothing here ever follows it."""
        parent = self._open(parts[:-1])
        self._clear(parent, parts[-1])
        os.symlink(target, parts[-1], dir_fd=parent)

    def hardlink(self, source: tuple[str, ...], parts: tuple[str, ...]) -> None:
        """Give a file of this tree one more name."""
        here = self._open(source[:-1])
        there = os.dup(here)
        try:
            parent = self._open(parts[:-1])
            self._clear(parent, parts[-1])
            os.link(
                source[-1], parts[-1], src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False
            )
        except OSError as e:
            if e.errno == errno.EMLINK:
                raise refuse("/".join(parts), "the file has too many hard links") from e
            raise
        finally:
            os.close(there)

    def _open(self, parts: tuple[str, ...]) -> int:
        # Members of one directory follow one another: the last one stays open.
        if self._parent is not None:
            if self._parent[0] == parts:
                return self._parent[1]
            os.close(self._parent[1])
            self._parent = None
        try:
            fd = self._beneath(self._root, "/".join(parts) or ".")
        except FileNotFoundError:
            fd = self._make(parts)
        self._parent = (parts, fd)
        return fd

    def _make(self, parts: tuple[str, ...]) -> int:
        fd = os.dup(self._root)
        for part in parts:
            above = fd
            try:
                try:
                    os.mkdir(part, 0o700, dir_fd=above)
                    made = True
                except FileExistsError:
                    made = False
                fd = self._beneath(above, part)
            finally:
                os.close(above)
            if made:
                os.fchmod(fd, 0o755)
        return fd

    def _beneath(self, fd: int, path: str) -> int:
        return openat2(fd, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, 0, _BENEATH)

    def _clear(self, parent: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass

    def _check_space(self, size: int) -> None:
        self._unchecked += size
        if self._unchecked < _SPACE_STEP_BYTES:
            return
        self._unchecked = 0
        room = os.fstatvfs(self._root)
        if room.f_bavail * room.f_frsize < self._limits.reserve_bytes:
            # The node's own records share this file system and must stay writable.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
