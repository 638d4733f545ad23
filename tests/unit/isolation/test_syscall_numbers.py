"""The numbers of isolation.syscalls, held against the kernel's own headers.

linux-libc-dev brings them: the x86-64 table by its own name, and the generic one, which is
arm64's.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nativert.isolation import syscalls

TABLES = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
# Apart, because some versions of glibc's and the kernel's exclude each other.
HEADERS = (
    ("sched.h", "fcntl.h", "sys/mount.h", "sys/prctl.h", "sys/inotify.h"),
    (
        "linux/sched.h", "linux/fcntl.h", "linux/mount.h", "linux/openat2.h", "linux/prctl.h",
        "linux/seccomp.h", "linux/capability.h", "linux/close_range.h", "linux/aio_abi.h",
    ),
)  # fmt: skip
# Constants of an enum, which the preprocessor does not list.
ENUMS = {"linux/aio_abi.h": ("IOCB_CMD_FDSYNC",)}


@pytest.mark.parametrize("machine", syscalls.NUMBERS)
def test_system_call_numbers_are_the_headers(machine: str) -> None:
    header = TABLES[machine]
    if not header.exists():
        pytest.skip(f"{header} is not there (linux-libc-dev)")
    found = dict(
        re.findall(r"^#define __NR_(\w+)\s+(\d+)$", header.read_text(), flags=re.MULTILINE)
    )
    ours = syscalls.NUMBERS[machine]
    assert {name: int(found[name]) for name in ours} == ours


def constants() -> dict[str, int]:
    return {
        name: value
        for name, value in vars(syscalls).items()
        if type(value) is int and re.fullmatch(r"[A-Z][A-Z0-9_]+", name)
    }


def cc(source: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cc", "-D_GNU_SOURCE", *options, "-x", "c", "-"],
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_constants_are_the_headers() -> None:
    ours = constants()
    assert len(ours) > 20
    compared: set[str] = set()
    for headers in HEADERS:
        includes = "".join(f"#include <{header}>\n" for header in headers)
        macros = cc(includes, "-E", "-dM")
        assert macros.returncode == 0, macros.stderr
        # One of them begins with "_" in the header: _LINUX_CAPABILITY_VERSION_3.
        known = re.findall(r"^#define (\w+) ", macros.stdout, flags=re.MULTILINE)
        known += [name for header in headers for name in ENUMS.get(header, ())]
        spelled = {name.removeprefix("_"): name for name in known}
        asserts = "".join(
            f'_Static_assert((long long)({spelled[name]}) == {value}LL, "{name}");\n'
            for name, value in ours.items()
            if name in spelled
        )
        checked = cc(includes + asserts, "-fsyntax-only")
        assert checked.returncode == 0, checked.stderr
        compared |= spelled.keys() & ours.keys()
    assert ours.keys() - compared == set()


def test_this_machine_has_a_table_of_its_own() -> None:
    assert platform.machine() in syscalls.NUMBERS
