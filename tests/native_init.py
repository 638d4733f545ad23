"""Parts of init's C program in programs that drive them, compiled with the sanitizers.

What is out of bounds or undefined ends a driver with a report on standard error, and with
it the test.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple, Self

_SOURCES = Path(__file__).parents[1] / "nativert/launcher/init"
_DRIVERS = Path(__file__).parent / "native"
_PARTS = {
    "drive_log": ("log.c", "pipe.c", "text.c", "utf8.c"),
    "drive_json": ("json.c", "text.c", "utf8.c"),
    "drive_evidence": ("evidence.c",),
    "drive_rootfs": (
        *("rootfs.c", "mounts.c", "namespaces.c", "json.c", "text.c", "utf8.c"),
        *("protocol.c", "system.c"),
    ),
}
_BASE = ("-std=gnu17", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror")
_FLAGS = (*_BASE, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@functools.cache
def _directory() -> Path:
    directory = tempfile.mkdtemp(prefix="nativert-native-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


@functools.cache
def driver(name: str) -> Path:
    """Return the path of a driver, compiled when it is first asked for."""
    wrap = ["-Wl,--wrap=write"] if name == "drive_log" else []
    return _compiled(name, *_FLAGS, *wrap)


@functools.cache
def library(name: str) -> Path:
    """Return the path of a driver as a shared library, without the sanitizers."""
    return _compiled(name, *_BASE, "-shared", "-fPIC")


def _compiled(name: str, *flags: str) -> Path:
    made = _directory() / name
    sources = [_DRIVERS / f"{name}.c", *(_SOURCES / part for part in _PARTS[name])]
    command = [os.environ.get("CC", "gcc"), *flags, f"-I{_SOURCES}", "-o", str(made)]
    subprocess.run([*command, *map(str, sources)], check=True)
    return made


class Driven:
    """A driver that runs: a line in, a line out."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [driver(name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> str:
        """Return the answer to *line*."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the driver has ended: see its report"
        return answer.rstrip("\n")

    def close(self) -> None:
        """End it; it must have nothing to report."""
        self._process.communicate()
        assert self._process.returncode == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Relayed(NamedTuple):
    """What the log driver answers."""

    result: int
    lost_bytes: int
    rest: int
    waits_ns: int


class LogRelay(Driven):
    """A log in *directory* and the pipe of stdout into it."""

    def __init__(self, directory: Path, *, max_bytes: int = 1 << 20, files: int = 3) -> None:
        super().__init__("drive_log")
        self.state = Relayed(0, 0, 0, 0)
        self.directory = directory
        self.do("open", max_bytes, files, directory)

    def do(self, *words: object) -> int:
        """Carry out one command and return its result."""
        self.state = Relayed(*map(int, self.ask(" ".join(map(str, words))).split()))
        return self.state.result

    @property
    def lost_bytes(self) -> int:
        """How much was dropped so far."""
        return self.state.lost_bytes

    def say(self, data: bytes) -> None:
        """Pass *data* through the pipe."""
        self.do("say", data.hex())

    def write(self, data: bytes) -> None:
        """Append whole lines, without the pipe."""
        self.do("write", data.hex())
