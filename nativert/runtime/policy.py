"""What an archive may contain: names, kinds, links, sizes and numbers.

Pure decisions over what an archive claims. Nothing here touches a file, and
nothing here is trusted alone: unpacking opens every path beneath its target.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from nativert.runtime.image_errors import ImageError

NAME_BYTES: Final = 255  # NAME_MAX of every file system that an image is unpacked to
PATH_BYTES: Final = 4095  # PATH_MAX less its NUL
_SHOWN: Final = 200

# The runtime mounts over these; a link there would lead the mount elsewhere.
MOUNT_POINTS: Final = frozenset({"dev", "proc", "sys", "run", "tmp", "data"})


class Kind(enum.Enum):
    """What a member of an archive is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    DEVICE = "device node"
    FIFO = "fifo"
    SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry as the archive claims it; `size` in bytes, `mtime` in seconds since the epoch."""

    name: str
    kind: Kind
    mode: int = 0o644
    size: int = 0
    mtime: int | None = None
    link: str = ""


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """Where unpacking stops; `ratio` (out : in) counts above `ratio_from_bytes`."""

    max_bytes: int = 8 << 30
    max_files: int = 200_000
    max_ratio: int = 200
    ratio_from_bytes: int = 10 << 20
    max_depth: int = 64
    reserve_bytes: int = 64 << 20  # stays free on the target's file system


def shown(name: str) -> str:
    """Return a name for an error text: quoted, escaped, and cut where it is very long."""
    # repr() escapes what is not printable: control characters, surrogates, direction marks.
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def refuse(name: str, rule: str, *, hint: str = "") -> ImageError:
    """Return the error for a member that breaks a rule."""
    return ImageError(f"member {shown(name)}: {rule}", hint=hint)


def split_name(name: str, *, max_depth: int, whose: str | None = None) -> tuple[str, ...]:
    """Return the components of a name inside the image, () for its root; `whose` holds a link."""
    whose = name if whose is None else whose
    if "\0" in name:
        raise refuse(whose, "the name holds a NUL")
    if name.startswith("/"):
        raise refuse(
            whose, "the name is absolute", hint="pack with names relative to the image's root"
        )
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > PATH_BYTES:
        raise refuse(whose, f"the path is {len(encoded)} bytes long, the most is {PATH_BYTES}")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise refuse(whose, 'the name contains ".."')
    for part in parts:
        length = len(part.encode("utf-8", "surrogateescape"))
        if length > NAME_BYTES:
            raise refuse(whose, f"a name is {length} bytes long, the most is {NAME_BYTES}")
    if len(parts) > max_depth:
        raise refuse(whose, f"the path is {len(parts)} deep, the most is {max_depth}")
    return parts


def _check_symlink(name: str, parts: tuple[str, ...], target: str, *, rootfs: bool) -> None:
    if not target or "\0" in target or len(target.encode("utf-8", "surrogateescape")) > PATH_BYTES:
        raise refuse(name, "the link's target is empty, too long, or holds a NUL")
    if target.startswith("/"):
        # Inside a pivoted root "/" is the image itself; under /app it is somebody else's.
        if not rootfs:
            raise refuse(
                name,
                f"the link leads to the absolute path {shown(target)}",
                hint="make it relative, or use native.rootfs: image",
            )
        depth = 0
    else:
        depth = len(parts) - 1
    for part in target.split("/"):
        if part == "..":
            depth -= 1
            if depth < 0:
                raise refuse(name, f"the link to {shown(target)} leaves the image")
        elif part not in ("", "."):
            depth += 1


class Policy:
    """The rules for one archive; remembers what it has let in, to judge what follows."""

    def __init__(self, limits: UnpackLimits, *, rootfs: bool) -> None:
        self._limits = limits
        self._rootfs = rootfs
        self._kinds: dict[tuple[str, ...], Kind] = {(): Kind.DIRECTORY}
        self.bytes = 0
        self.files = 0

    def admit(self, member: Member) -> tuple[str, ...]:
        """Return the components of an accepted member's path; raises `ImageError`."""
        name = member.name
        if member.kind in (Kind.DEVICE, Kind.FIFO, Kind.SOCKET):
            raise refuse(
                name,
                f"it is a {member.kind.value}",
                hint="pack without it; the instance has a /dev of its own",
            )
        parts = split_name(name, max_depth=self._limits.max_depth)
        if member.kind is Kind.FILE:
            self._check_file(member)
        if not parts and member.kind is not Kind.DIRECTORY:
            raise refuse(name, f"a {member.kind.value} cannot be the image's root")
        self._check_way(name, parts)
        before = self._kinds.get(parts)
        # A hard link is a further name of a file, so it may replace one.
        kind = Kind.FILE if member.kind is Kind.HARDLINK else member.kind
        if before is not None and before is not kind:
            raise refuse(name, f"it comes twice, as {before.value} and as {kind.value}")
        if self._rootfs and len(parts) == 1 and parts[0] in MOUNT_POINTS:
            self._check_mount_point(name, kind)
        if kind is Kind.SYMLINK:
            _check_symlink(name, parts, member.link, rootfs=self._rootfs)
        self._enter(parts, kind)
        return parts

    def hardlink_source(self, member: Member, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Return the components of the file that a hard link names again."""
        # Hard links carry the archive's own spelling of an earlier member.
        source = split_name(member.link, max_depth=self._limits.max_depth, whose=member.name)
        if self._kinds.get(source) is not Kind.FILE or source == parts:
            raise refuse(
                member.name,
                f"the hard link's target {shown(member.link)} is not a file of this image",
            )
        return source

    def grow(self, name: str, size: int) -> None:
        """Count bytes that are about to be written; raises at the limit."""
        self.bytes += size
        if self.bytes > self._limits.max_bytes:
            raise refuse(name, f"the image unpacks to more than {self._limits.max_bytes} bytes")

    def _check_file(self, member: Member) -> None:
        if member.mode & 0o6000:
            raise refuse(
                member.name,
                "it is set-uid or set-gid",
                hint="pack without these bits: chmod ug-s; an instance gains nothing by them",
            )
        if self.bytes + member.size > self._limits.max_bytes:
            raise refuse(
                member.name, f"the image unpacks to more than {self._limits.max_bytes} bytes"
            )

    def _check_way(self, name: str, parts: tuple[str, ...]) -> None:
        for depth in range(1, len(parts)):
            way = parts[:depth]
            kind = self._kinds.get(way)
            if kind is None:
                self._enter(way, Kind.DIRECTORY)
            elif kind is not Kind.DIRECTORY:
                raise refuse(name, f"its path goes through the {kind.value} {shown('/'.join(way))}")

    def _check_mount_point(self, name: str, kind: Kind) -> None:
        if kind is not Kind.DIRECTORY:
            raise refuse(
                name, f"it must be a directory, not a {kind.value}: the runtime mounts over it"
            )

    def _enter(self, parts: tuple[str, ...], kind: Kind) -> None:
        if not parts:
            return  # the root is there before the image
        self._kinds[parts] = kind
        # A repeated member counts again: a million of the same name is work all the same.
        self.files += 1
        if self.files > self._limits.max_files:
            raise ImageError(
                f"the image holds more than {self._limits.max_files} files and directories"
            )
