"""Mounts beneath a root that is being built, named by descriptors.

Targets are opened beneath the new root with openat2(2) and no symbolic link is
followed, so an image cannot lead a mount elsewhere (CVE-2021-30465, CVE-2025-31133).
"""

from __future__ import annotations

import errno
import os
import re

from nativert.isolation.syscalls import (
    AT_FDCWD,
    AT_RECURSIVE,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    mount,
    mount_setattr,
    openat2,
)

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Final

_STRICT: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
# mountinfo(5) words for what a remount must keep.
_MS_OF: Final = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
}
_ATTR_OF: Final = {
    MS_RDONLY: MOUNT_ATTR_RDONLY,
    MS_NOSUID: MOUNT_ATTR_NOSUID,
    MS_NODEV: MOUNT_ATTR_NODEV,
    MS_NOEXEC: MOUNT_ATTR_NOEXEC,
}
# proc(5): blank, tab, newline and backslash of a mount point.
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_kernel = tuple(int(part) for part in os.environ.get("NATIVERT_KERNEL", "9.9").split(".")[:2])


def open_target(root: int, path: str) -> int:
    """Return an O_PATH descriptor of absolute *path* beneath *root*, following no link.

    Raises OSError (ELOOP for a symbolic link on the way).
    """
    return openat2(root, path.lstrip("/") or ".", os.O_PATH | os.O_NOFOLLOW, 0, _STRICT)


def make_target(root: int, path: str, *, directory: bool) -> int:
    """Return a descriptor of *path* beneath *root*, making what is missing on the way."""
    try:
        return open_target(root, path)
    except FileNotFoundError:
        pass
    parts = [part for part in path.split("/") if part]
    at = os.dup(root)
    try:
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            try:
                if last and not directory:
                    os.close(
                        os.open(
                            part,
                            os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC,
                            0o444,
                            dir_fd=at,
                        )
                    )
                else:
                    os.mkdir(part, 0o755, dir_fd=at)
            except FileExistsError:
                pass
            except OSError as e:
                raise OSError(
                    e.errno, f"make mount point: {os.strerror(e.errno or 0)}", path
                ) from e
            below = openat2(at, part, os.O_PATH | os.O_NOFOLLOW, 0, _STRICT)
            os.close(at)
            at = below
        return os.dup(at)
    finally:
        os.close(at)


def _fd_path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _remount_each(top: str, flags: int) -> None:
    # Linux before 5.12 has no mount_setattr: every mount of the tree is remounted by
    # itself, and each keeps the flags that it already has.
    top = os.path.realpath(top)
    points: dict[str, set[str]] = {}
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(b" ")
            point = os.fsdecode(_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), fields[4]))
            if point == top or point.startswith(top.rstrip("/") + "/"):
                points[point] = set(fields[5].decode().split(","))
    if top not in points:
        # Somebody who can write to the directory above has renamed the mount point: flags
        # that fall on nothing must not pass for set.
        raise OSError(errno.EINVAL, "not a mount point", top)
    for point, words in points.items():
        kept = 0
        for word in words:
            kept |= _MS_OF.get(word, 0)
        mount("none", point, flags=MS_REMOUNT | MS_BIND | flags | kept)


def set_flags(path: str, flags: int, *, recursive: bool) -> None:
    """Add MS_RDONLY, MS_NOSUID, MS_NODEV or MS_NOEXEC to the mount at *path*.

    With *recursive* also to every mount below it.
    """
    attributes = 0
    for flag, attribute in _ATTR_OF.items():
        attributes |= attribute if flags & flag else 0
    if _kernel >= (5, 12):
        try:
            mount_setattr(AT_FDCWD, path, AT_RECURSIVE if recursive else 0, attributes)
        except OSError as e:
            if e.errno != errno.ENOSYS:
                raise
        else:
            return
    _remount_each(path, flags)


def bind(source: str, root: int, target: str, flags: int = 0, *, recursive: bool = True) -> None:
    """Bind *source* at *target* beneath *root*, then restrict the new mount by *flags*."""
    fd = make_target(root, target, directory=os.path.isdir(source))
    try:
        path = _fd_path(fd)
        mount(source, path, flags=MS_BIND | (MS_REC if recursive else 0))
    finally:
        os.close(fd)
    if flags:
        # The descriptor names the covered directory: the new mount is reached by name.
        mounted = open_target(root, target)
        try:
            set_flags(_fd_path(mounted), flags, recursive=recursive)
        finally:
            os.close(mounted)


def attach(source: str, root: int, target: str, fstype: str, flags: int, data: str = "") -> None:
    """Mount a new filesystem at *target* beneath *root*."""
    fd = make_target(root, target, directory=True)
    try:
        mount(source, _fd_path(fd), fstype, flags, data)
    finally:
        os.close(fd)
