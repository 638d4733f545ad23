"""What nativert can leave on a host, so that a test run can compare before and after."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import scale

PROC = Path("/proc")

# Where nativert keeps things without --root, and where ip-netns(8) keeps names.
DIRECTORIES = ("/run", "/var/lib", "/etc", "/run/lock")

# Others mount and unmount these at any time.
FOREIGN_MOUNTS = ("/run/user/", "/run/credentials/", "/proc/sys/fs/binfmt_misc")


def take() -> frozenset[str]:
    """Return one line for each thing that is there now."""
    return frozenset(
        line for kind in (_processes, _cgroups, _mounts, _links, _tables, _files) for line in kind()
    )


def leftovers(before: frozenset[str], *words: str, deadline_s: float = scale.LONG_S) -> list[str]:
    """Return what was not there before, as soon as it is nothing or when *deadline_s* is over.

    With *words* only what has one of them in its line.

    The kernel removes network namespaces, their links and dying cgroups in the background.
    """
    end = time.monotonic() + deadline_s
    while (left := _having(take() - before, words)) and time.monotonic() < end:
        time.sleep(0.05)
    return sorted(left)


def _having(lines: frozenset[str], words: tuple[str, ...]) -> list[str]:
    return [line for line in lines if not words or any(word in line for word in words)]


def _processes() -> Iterator[str]:
    own_cgroup = _read(PROC / "self/cgroup")
    own_net = os.readlink("/proc/self/ns/net")
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # Field 22 of proc_pid_stat(5), the start time, tells a reused pid from its owner.
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            if stat[0] == "Z":
                # All that a zombie has left is this file.
                if stat[1] == str(os.getpid()):
                    yield f"zombie {entry.name} (started {stat[19]})"
                continue
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            cgroup = (entry / "cgroup").read_text()
        except OSError:
            continue
        name = f"{entry.name} (started {stat[19]}): {' '.join(argv).strip()[:120]}"
        if _is_ours(argv) or "/nativert" in cgroup:
            yield f"process {name}"
        net = _link(entry / "ns/net")
        # A service with a network of its own, started meanwhile by systemd, is not ours.
        if net not in ("", own_net) and (".service" not in cgroup or cgroup == own_cgroup):
            yield f"network namespace {net}"
    for descriptor in (PROC / "self/fd").iterdir():
        target = _link(descriptor)
        if target.startswith("net:") and target != own_net:
            yield f"network namespace {target} held by the test process"


def _is_ours(argv: list[str]) -> bool:
    # A checkout may be called nativert: a path that only leads through it says nothing.
    return any(
        argument.startswith(("nativert.", "nativert-", "nativert:"))
        or argument.endswith("/nativert")
        or argument == "nativert"
        or "nativert.launcher" in argument
        or "/nativert/launcher/" in argument
        for argument in argv[:6]
    )


def _cgroups() -> Iterator[str]:
    for _, _, point, _, fstype in _mountinfo():
        if fstype not in ("cgroup", "cgroup2"):
            continue
        for directory, below, _ in os.walk(point):
            if "/nativert" in directory[len(point) :]:
                yield f"cgroup {directory}"
            # Other managers' subtrees change by themselves and are theirs.
            below[:] = [name for name in below if name not in ("docker", "process_api")]


def _mounts() -> Iterator[str]:
    for _, root, point, source, fstype in _mountinfo():
        if not point.startswith(FOREIGN_MOUNTS):
            yield f"mount {point} ({fstype} {source} {root})"


def _mountinfo() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (id, root, mount point, source, type) as in proc_pid_mountinfo(5)."""
    for line in (PROC / "self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields, (fstype, source, *_) = left.split(), right.split()
        yield fields[0], fields[3], fields[4], source, fstype


def _links() -> Iterator[str]:
    for _, name in socket.if_nameindex():
        yield f"link {name}"


def _tables() -> Iterator[str]:
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if nft is None:
        return
    done = subprocess.run([nft, "list", "tables"], capture_output=True, text=True, timeout=30)
    for line in done.stdout.splitlines():
        yield f"nftables {line}"


def _files() -> Iterator[str]:
    tops = [top for directory in DIRECTORIES for top in Path(directory).glob("nativert*")]
    for top in [*tops, Path("/run/netns")]:
        for directory, _, names in os.walk(top):
            for name in names:
                path = Path(directory, name)
                # A lock file stays: unlinking it would let two processes hold "the" lock.
                if path.suffix != ".lock":
                    yield f"file {path}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
