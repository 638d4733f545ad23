"""The program criu: whether it works here, how it is called, and what it says went wrong.

It is executed by an init (launcher/init/checkpoint.c), in whose namespaces it finds the
application and nothing that it would have to dump beside it but the user namespace. Paths that
it gets name descriptors that init hands over, so that they mean the same behind any root.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from nativert.errors import Code, NativertError

# launcher/init/checkpoint.c numbers what it hands over from here.
_FIRST_FD: Final = 10
_IMAGES: Final = f"/proc/self/fd/{_FIRST_FD}"
_CHECK_TIMEOUT_S: Final = 120.0
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION: Final = re.compile(r"^Version: (\S+)", re.MULTILINE)
_ERROR: Final = re.compile(
    r"^(?:\([\d.]+\)\s*)?(?:\d+:\s*)?(?:pie: \d+: )?Error \([^)]*\): (.*)", re.MULTILINE
)
_LIBRARY: Final = re.compile(r"(?:=>\s*|^\s*)(/\S+) \(0x", re.MULTILINE)
# What criu finds out about the kernel at its start goes wrong in many a machine, and means nothing.
_MEANINGLESS: Final = ("exited, status=", "tun: Unable to create tun")
LOG: Final = {"dump": "dump.log", "restore": "restore.log"}


class Criu(NamedTuple):
    """The CRIU of this machine: where it is, and its version."""

    path: str
    version: str


def installed() -> Criu:
    """Return the CRIU that is here; NativertError(MIGRATE) where none is."""
    path = shutil.which("criu", path=_PATH)
    if path is None:
        raise _refused("criu is not installed", hint="on Debian: apt-get install criu")
    told = _VERSION.search(_said([path, "--version"]).stdout)
    if told is None:
        raise _refused(f"{path} --version tells no version")
    return Criu(path, told[1])


def check(criu: Criu) -> None:
    """Have CRIU find out whether this kernel has all that it needs; NativertError(MIGRATE)."""
    told = _said([criu.path, "check"])
    if told.returncode != 0:
        raise _refused(f"criu check says: {_cause(told.stdout)}")


def _cause(text: str) -> str:
    told = [line for line in _ERROR.findall(text) if not line.startswith(_MEANINGLESS)]
    # The first is the cause, what follows is what it leads to.
    return told[0][:500] if told else "no reason"


def _said(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={"PATH": _PATH, "LC_ALL": "C"},
            timeout=_CHECK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise _refused(f"{' '.join(command)}: {e}") from e


def _refused(reason: str, hint: str = "") -> NativertError:
    return NativertError(reason, code=Code.MIGRATE, hint=hint)


def files(criu: Criu) -> list[str]:
    """Return the program, its loader and its libraries: what runs as root where it is executed."""
    listed = _said(["ldd", criu.path])
    libraries = _LIBRARY.findall(listed.stdout)
    if listed.returncode != 0 or not libraries:
        raise _refused(f"ldd {criu.path} lists no libraries")
    return [criu.path, *libraries]


def dump_command(criu: Criu, pid: int) -> list[str]:
    """Return how the frozen process *pid* is dumped, and left frozen whatever comes of it.

    Descriptors: the images' directory, and the cgroup2 directory in which it is frozen.
    """
    return [
        *_command(criu, "dump"),
        *("--tree", str(pid), "--leave-running"),
        *("--freeze-cgroup", f"/proc/self/fd/{_FIRST_FD + 1}"),
    ]


def restore_command(criu: Criu, stdout: int, stderr: int) -> list[str]:
    """Return how it is restored; *stdout* and *stderr* were its pipes' inodes where it was dumped.

    Descriptors: the images' directory, the two pipes' writing ends, the user namespace.
    """
    return [
        *_command(criu, "restore"),
        "--restore-detached",
        *("--inherit-fd", f"fd[{_FIRST_FD + 1}]:pipe:[{stdout}]"),
        *("--inherit-fd", f"fd[{_FIRST_FD + 2}]:pipe:[{stderr}]"),
        # Joined by what is restored, not by criu itself: as the namespace's root.
        *("--join-ns", f"user:/proc/self/fd/{_FIRST_FD + 3},0,0"),
    ]


def _command(criu: Criu, action: str) -> list[str]:
    return [
        *(criu.path, action, "--no-default-config", "--manage-cgroups=ignore", "-v4"),
        *("--images-dir", _IMAGES, "--work-dir", _IMAGES, "--log-file", LOG[action]),
    ]


def reason(images: Path, action: str) -> str:
    """Return what went wrong by criu's own log in *images*."""
    try:
        text = (images / LOG[action]).read_text(errors="replace")
    except OSError:
        return "it has left no log"
    return _cause(text)
