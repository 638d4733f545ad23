"""Compile init, the static C program in nativert/launcher/init.

Called by scripts/setup for a checkout and by hatchling for a wheel; does nothing when the program
that is there was made from the sources that are there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface as Hook
except ImportError:  # scripts/setup builds before or after hatchling is installed
    Hook = object

SOURCES = Path(__file__).parents[1] / "nativert/launcher/init"
PROGRAM = SOURCES / "nativert-init"
FLAGS = [
    *("-std=gnu17", "-D_GNU_SOURCE", "-Os", "-static", "-s"),
    *("-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes"),
    *("-fno-strict-aliasing", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"),
    *("-Wl,--build-id=none", "-Wl,-z,noseparate-code"),
]


def compiler() -> str:
    """Return the C compiler; SystemExit if there is none."""
    found = shutil.which(os.environ.get("CC", "gcc"))
    if found is None:
        sys.exit("init: no C compiler: install gcc and libc6-dev, or run scripts/setup")
    return found


def source_digest() -> str:
    """Return 16 hex digits that change with the sources and with how they are compiled."""
    digest = hashlib.sha256(repr(FLAGS).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def fresh(digest: str) -> bool:
    """Tell whether the program that is there is the one that would be made."""
    try:
        return f"nativert-init-source:{digest}".encode() in PROGRAM.read_bytes()
    except FileNotFoundError:
        return False


def build() -> bool:
    """Make the program unless it is there; tell whether it was made. SystemExit if it cannot be."""
    digest = source_digest()
    if fresh(digest):
        return False
    # Beside it and renamed: a program that runs can be replaced, but not written to.
    temporary = PROGRAM.with_name(f".{PROGRAM.name}.{os.getpid()}")
    command = [compiler(), *FLAGS, f'-DSOURCE_DIGEST="{digest}"', "-o", str(temporary)]
    try:
        subprocess.run([*command, *map(str, sorted(SOURCES.glob("*.c")))], check=True)
        temporary.rename(PROGRAM)
    except subprocess.CalledProcessError as e:
        sys.exit(f"init: {command[0]} failed ({e.returncode})")
    finally:
        temporary.unlink(missing_ok=True)
    return True


class BuildInit(Hook):  # type: ignore[misc, valid-type, unused-ignore]
    """Adds the program to what hatchling builds."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the platform that the wheel is for."""
        build()
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        if version != "editable":
            target = PROGRAM.relative_to(Path(__file__).parents[1])
            build_data["force_include"][str(PROGRAM)] = str(target)


if __name__ == "__main__":
    if build():
        print(f"init: built {PROGRAM}")
