"""The program of an instance: where its binary is, and what it is started with."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from nativert.errors import Code, NativertError
from nativert.fdu.descriptor import Descriptor
from nativert.launcher.plan import Program
from nativert.runtime import beneath
from nativert.runtime.root import SHOWN
from nativert.runtime.users import User

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Processes and threads where the descriptor has no pids.max: a fork bomb takes the whole
# machine's numbers (32,768 by default) otherwise. The ids are the instance's own, so it
# shares this with nobody.
_NPROC: Final = 4096
_MIGRATION_SOCKET: Final = "NATIVERT_MIGRATION_SOCKET"
_BRING_IN: Final = "bring it in: image: {uri: file://…}, native.mounts, or run --bind-here"


def environment(
    descriptor: Descriptor, user: User, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the whole environment: nothing of ours or of the starter's is in it."""
    path = _PATH
    if descriptor.image is not None and descriptor.native.rootfs == "host":
        path = f"/app/bin:{path}"
    base = {"PATH": path, "HOME": "/data", "USER": user.name, "LANG": "C.UTF-8"}
    migration = descriptor.native.migration
    if migration is not None and migration.socket:
        base[_MIGRATION_SOCKET] = migration.socket
    return base | dict(descriptor.native.env) | dict(extra or {})


def rlimits(
    descriptor: Descriptor, inherited: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return {name: (soft, hard)}: the launcher's original ones, no core files, the asked for."""
    limits = {name: (soft, hard) for name, (soft, hard) in inherited.items()}
    # Cores land on the host; -1 is no limit.
    limits["core"] = (0, 0)
    if descriptor.native.pids.max is None and not 0 <= limits["nproc"][1] < _NPROC:
        limits["nproc"] = (_NPROC, _NPROC)
    for name, soft, hard in descriptor.native.rlimits.limits():
        limits[name] = (soft, hard)
    return limits


def argv(descriptor: Descriptor, image: Path | None) -> list[str]:
    """Return the argument vector with the binary as it will be found inside."""
    command = descriptor.command
    if command is None:
        if image is None:
            raise AssertionError("a descriptor has a command or an image")
        return [_only_program(image)]
    binary = command.binary
    if image is not None and not binary.startswith("/"):
        prefix = "/app" if descriptor.native.rootfs == "host" else ""
        for candidate in (binary, f"bin/{binary}"):
            if os.path.isfile(image / candidate):
                binary = os.path.normpath(f"{prefix}/{candidate}")
                break
    return [binary, *command.args]


def _only_program(image: Path) -> str:
    directory = image / "bin"
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    if len(names) != 1:
        raise NativertError(
            f"the image has {len(names)} programs in bin and the descriptor names none",
            code=Code.IMAGE,
            hint="name one: command: {binary: …}",
        )
    return f"/app/bin/{names[0]}"


def check(descriptor: Descriptor, binary: str, image: Path | None, data: Path) -> None:
    """Refuse, before anything is made, a program that cannot be there or cannot run here.

    Looks at the host's side of what will be shown; what only the instance can tell (a file
    that a script makes, a link that leads elsewhere, a loader) is told by exec.
    NativertError with the codes of a shell.
    """
    if "/" not in binary:
        return
    path = os.path.normpath(os.path.join(descriptor.native.workdir, binary))
    place = _on_host(descriptor, path, image, data)
    if place is None:
        return
    source = place.directory / place.name if place.name else place.directory
    try:
        fd = place.open()
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOTDIR):
            return
        raise NativertError(
            f"{binary}: no such program",
            code=Code.COMMAND_NOT_FOUND,
            hint=f"it would be {source} on this host" if str(source) != binary else "",
        ) from e
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        if not regular or not os.access(f"/proc/self/fd/{fd}", os.X_OK):
            barred = regular and os.fstatvfs(fd).f_flag & os.ST_NOEXEC
            raise NativertError(
                f"{binary}: not an executable file"
                + (": its file system is mounted noexec" if barred else ""),
                code=Code.NOT_EXECUTABLE,
                hint=f"chmod +x {source}" if regular and not barred else "",
            )
        from nativert.runtime import diagnosis_elf

        built = diagnosis_elf.machine(beneath.head(fd, 20) or b"")
        if built is not None and not built.native:
            from nativert.runtime.diagnosis import wrong_machine

            finding = wrong_machine(binary, built)
            raise NativertError(finding.message, code=finding.code, hint=finding.hint)
    finally:
        os.close(fd)


class _Place(NamedTuple):
    """Where a path of the instance is on the host; whose links are followed how far."""

    directory: Path
    name: str
    links: Literal["none", "beneath", "host"]

    def open(self) -> int:
        if self.links == "host":
            return os.open(self.directory / self.name, os.O_PATH | os.O_CLOEXEC)
        return beneath.find(self.directory, self.name, links=self.links == "beneath")


def _on_host(descriptor: Descriptor, path: str, image: Path | None, data: Path) -> _Place | None:
    for tmpfs in descriptor.native.tmpfs_mounts():
        if path.startswith(f"{tmpfs.target}/"):
            return None
    for mount in sorted(descriptor.native.mounts, key=lambda m: -len(m.target)):
        if path == mount.target:
            return _Place(Path(mount.source), "", "host")
        if path.startswith(f"{mount.target}/"):
            return _Place(Path(mount.source), path[len(mount.target) + 1 :], "beneath")
    if path.startswith("/data/"):
        # The script of the descriptor may make it there.
        return None if descriptor.script else _Place(data, path[6:], "beneath")
    if descriptor.native.rootfs == "image":
        # What another mount covers may lie behind a link: /bin and a mounted /usr.
        return None if image is None else _Place(image, path[1:], "none")
    if image is not None and path.startswith("/app/"):
        return _Place(image, path[5:], "beneath")
    if path.split("/")[1] in SHOWN:
        return _Place(Path("/"), path[1:], "host")
    raise NativertError(
        f"{path}: not visible inside: of the host only /{', /'.join(SHOWN)} are shown",
        code=Code.COMMAND_NOT_FOUND,
        hint=_BRING_IN,
    )


def build(
    descriptor: Descriptor,
    arguments: list[str],
    user: User,
    limits: Mapping[str, tuple[int, int]],
    extra: Mapping[str, str] | None = None,
    *,
    cwd: str | None = None,
) -> Any:
    """Return the launcher's `Program` for these arguments."""
    native = descriptor.native
    return Program(
        argv=arguments,
        env=environment(descriptor, user, extra),
        cwd=cwd or native.workdir,
        uid=user.uid,
        gid=user.gid,
        groups=[],
        umask=native.umask_bits,
        rlimits=limits,
        oom_score_adj=native.oom_score_adj or 0,
    )
