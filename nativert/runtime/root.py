"""What an instance sees of the file system: the policy that isolation.rootfs carries out.

Of the host an allow-list, read-only; of its own, /data, /tmp, /run, /dev; the image at
/app or as the whole root. What is not listed is not there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nativert.errors import Code, NativertError
from nativert.fdu.descriptor import Descriptor
from nativert.isolation.rootfs import Step

SHOWN: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt")
# What of /etc tells secrets. The application's ids are not the host's, so that modes refuse
# it already; these are not shown even by name.
_SECRET: Final = (
    "shadow", "shadow-", "gshadow", "gshadow-", "ssh", "ssl/private", "sudoers", "sudoers.d",
    "security/opasswd", "krb5.keytab", "wireguard", "wpa_supplicant", "letsencrypt", "nativert",
    "NetworkManager/system-connections", "ipsec.secrets", "ipsec.d/private", "pki/tls/private",
)  # fmt: skip
_READ_ONLY: Final = ("ro", "nosuid", "nodev")
_WRITABLE: Final = ("nosuid", "nodev")
# Built by isolation.rootfs, or ours: never taken from an image.
_OWN: Final = frozenset({"proc", "sys", "dev", "tmp", "run", "data", "app"})
_ETC_FILES: Final = ("hosts", "hostname", "resolv.conf", "passwd", "group")
SCRIPT: Final = "/run/configure"
_TMP_BYTES: Final = 256 << 20
_RUN_BYTES: Final = 32 << 20
SHM_BYTES: Final = 64 << 20
_MAX_INODES: Final = 65536


@dataclass(frozen=True, slots=True)
class Sources:
    """Where on the host the parts of one instance's root are."""

    data: Path
    etc: Path
    """Directory with those of hosts, hostname, resolv.conf, passwd, group that are ours."""
    image: Path | None
    script: Path | None
    owner: tuple[int, int]
    """Host ids of the application."""


def steps(descriptor: Descriptor, sources: Sources) -> list[Step]:
    """Return how to build the root; raises NativertError for a mount that cannot be."""
    native = descriptor.native
    whole = native.rootfs == "image" and sources.image is not None
    ours = [name for name in _ETC_FILES if (sources.etc / name).exists()]
    result = [*_tree(sources.image, ours)] if whole and sources.image else [*_host(ours)]
    result += _scratch({tmpfs.target for tmpfs in native.tmpfs_mounts()}, sources.owner)
    result.append(Step("bind", str(sources.data), "/data", _WRITABLE))
    if sources.image is not None and not whole:
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
    result += [Step("file", str(sources.etc / name), f"/etc/{name}") for name in ours]
    if sources.script is not None:
        result.append(Step("file", str(sources.script), SCRIPT))
    own = [*(m.target for m in native.mounts), *(t.target for t in native.tmpfs_mounts())]
    return _outer_first([step for step in result if not _hides(step, own)])


def _hides(step: Step, targets: Sequence[str]) -> bool:
    # What the descriptor itself puts there is no secret of the host's.
    return step.kind == "mask" and any(f"{step.target}/".startswith(f"{t}/") for t in targets)


def _outer_first(result: list[Step]) -> list[Step]:
    # A mount over another's parent would hide it: user mounts go from the outside in.
    fixed = [step for step in result if step.kind not in {"bind", "tmpfs"}]
    mounts = [step for step in result if step.kind in {"bind", "tmpfs"}]
    links = [step for step in fixed if step.kind == "symlink" and step.target.count("/") == 1]
    rest = [step for step in fixed if step not in links]
    mounts.sort(key=lambda step: step.target.count("/"))
    return links + mounts + rest


def _host(ours: list[str]) -> Iterator[Step]:
    for name in SHOWN:
        if name == "etc" and not all(os.path.lexists(f"/etc/{file}") for file in ours):
            # A small host may have no /etc/hosts.
            yield from _etc("/etc", ours)
        else:
            yield from _entry(f"/{name}", f"/{name}")
    for name in _SECRET:
        if os.path.lexists(f"/etc/{name}"):
            yield Step("mask", "", f"/etc/{name}")


def _entry(source: str, target: str) -> Iterator[Step]:
    if os.path.islink(source):
        yield Step("symlink", os.readlink(source), target)
    elif os.path.lexists(source):
        yield Step("bind", source, target, _READ_ONLY)


def _tree(image: Path, ours: list[str]) -> Iterator[Step]:
    for name in sorted(os.listdir(image)):
        if name in _OWN:
            continue
        if (
            name == "etc"
            and _is(image / "etc", stat.S_IFDIR)
            and not all(_is(image / "etc" / file, stat.S_IFREG) for file in ours)
        ):
            # Links are not asked where they lead: from here that would be to files of the host.
            yield from _etc(f"{image}/etc", ours)
            continue
        yield from _entry(f"{image}/{name}", f"/{name}")


def _etc(directory: str, ours: list[str]) -> Iterator[Step]:
    # A read-only /etc has no place for a file that it lacks: take it apart.
    for name in sorted(os.listdir(directory)):
        if name not in ours:
            yield from _entry(f"{directory}/{name}", f"/etc/{name}")


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
