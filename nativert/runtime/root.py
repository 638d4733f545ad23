"""What an instance sees of the file system: the policy that launcher/init/rootfs.c carries out.

Of the host an allow-list, read-only; of its own, /data, /tmp, /run, /dev; the image at
/app or as the whole root. What is not listed is not there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from nativert.errors import Code, NativertError
from nativert.fdu.descriptor import Descriptor
from nativert.launcher.plan import Step

SHOWN: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt")
_READ_ONLY: Final = ("ro", "nosuid", "nodev")
_WRITABLE: Final = ("nosuid", "nodev")
# Built by rootfs.c, or ours, or laid over: never taken from an image as it is.
_OWN: Final = frozenset({"proc", "sys", "dev", "tmp", "run", "data", "app", "etc"})
SCRIPT: Final = "/run/configure"
_TMP_BYTES: Final = 256 << 20
_RUN_BYTES: Final = 32 << 20
SHM_BYTES: Final = 64 << 20
_MAX_INODES: Final = 65536


class Sources(msgspec.Struct, frozen=True):
    """Where on the host the parts of one instance's root are."""

    data: Path
    etc: Path
    """Directory with those files of /etc that are the instance's own."""
    hidden: Path | None
    """Whiteouts for the secrets of the host's /etc, where that is shown."""
    image: Path | None
    script: Path | None
    owner: tuple[int, int]
    """Host ids of the application."""


def steps(descriptor: Descriptor, sources: Sources) -> list[Step]:
    """Return how to build the root; raises NativertError for a mount that cannot be."""
    native = descriptor.native
    whole = sources.image if native.rootfs == "image" else None
    result = [*_host()] if whole is None else [*_tree(whole)]
    result.append(_etc(sources, whole))
    result += _scratch({tmpfs.target for tmpfs in native.tmpfs_mounts()}, sources.owner)
    result.append(Step("bind", str(sources.data), "/data", _WRITABLE))
    if sources.image is not None and whole is None:
        result.append(Step("bind", str(sources.image), "/app", _READ_ONLY))
    for tmpfs in native.tmpfs_mounts():
        size = tmpfs.size_bytes or _TMP_BYTES
        options = _options(size, "1777" if tmpfs.target == "/tmp" else "0755", sources.owner)
        result.append(Step("tmpfs", "", tmpfs.target, _WRITABLE, options))
    for mount in native.mounts:
        if not os.path.exists(mount.source):
            raise NativertError(
                f"mount source {mount.source}: no such file or directory",
                code=Code.CONFIGURE,
                hint=f"make it on the host before configure; it was to be shown at {mount.target}",
            )
        flags = _READ_ONLY if mount.read_only else _WRITABLE
        result.append(Step("bind", mount.source, mount.target, flags))
    if sources.script is not None:
        result.append(Step("bind", str(sources.script), SCRIPT, _READ_ONLY))
    return _outer_first(result)


def _outer_first(result: list[Step]) -> list[Step]:
    # A mount over another's parent would hide it: mounts go from the outside in.
    links = [step for step in result if step.kind == "symlink"]
    mounts = [step for step in result if step.kind != "symlink"]
    mounts.sort(key=lambda step: step.target.count("/"))
    return links + mounts


def _host() -> Iterator[Step]:
    for name in SHOWN:
        if name != "etc":
            yield from _entry(f"/{name}", f"/{name}")


def _entry(source: str, target: str) -> Iterator[Step]:
    if os.path.islink(source):
        yield Step("symlink", os.readlink(source), target)
    elif os.path.lexists(source):
        yield Step("bind", source, target, _READ_ONLY)


def _tree(image: Path) -> Iterator[Step]:
    for name in sorted(os.listdir(image)):
        if name not in _OWN:
            yield from _entry(f"{image}/{name}", f"/{name}")


def _etc(sources: Sources, whole: Path | None) -> Step:
    # Layers, and not mounts over single files: those the kernel takes away when the host
    # renames another file over the one below, as passwd(1) and DHCP clients do.
    lower = lower_etc(whole)
    if lower is None:
        return Step("bind", str(sources.etc), "/etc", _READ_ONLY)
    hidden = [] if sources.hidden is None else [sources.hidden]
    layers = [str(layer) for layer in (sources.etc, *hidden, lower)]
    return Step("overlay", "", "/etc", _READ_ONLY, layers)


def lower_etc(whole: Path | None) -> Path | None:
    """Return the /etc that the instance's own is laid over, of the host or of an image."""
    if whole is None:
        return Path(os.path.realpath("/etc"))
    # A link is not asked where it leads: from here that would be to files of the host.
    return whole / "etc" if _is(whole / "etc", stat.S_IFDIR) else None


def _is(path: Path, kind: int) -> bool:
    try:
        return stat.S_IFMT(os.lstat(path).st_mode) == kind
    except OSError:
        return False


def _scratch(replaced: set[str], owner: tuple[int, int]) -> Iterator[Step]:
    for target, size, mode in (
        ("/tmp", _TMP_BYTES, "1777"),
        ("/run", _RUN_BYTES, "0755"),
        ("/var/tmp", _TMP_BYTES, "1777"),
    ):
        if target not in replaced:
            yield Step("tmpfs", "", target, _WRITABLE, _options(size, mode, owner))


def _options(size: int, mode: str, owner: tuple[int, int]) -> str:
    uid, gid = owner
    return f"size={size},nr_inodes={_MAX_INODES},mode={mode},uid={uid},gid={gid}"
