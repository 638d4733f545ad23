"""Why a program was not executed: files of a made-up root, kernel records as they are written."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.runtime import diagnosis, diagnosis_elf
from nativert.runtime import diagnosis_kernel as kernel
from nativert.runtime import diagnosis_libraries as libraries
from nativert.runtime.diagnosis import Failure, Finding, Start
from nativert.runtime.diagnosis_root import Ids, Root

UUID = "0a1b2c3d-0000-1111-2222-333344445555"
CGROUP = f"i-{UUID}"


def found(root: Path, path: str, number: int, *, ids: Ids | None = None) -> Finding:
    start = Start([path], {"PATH": "/bin"}, "/", ids or Ids(os.getuid(), os.getgid()))
    failure = Failure("exec", number, path, os.strerror(number))
    return diagnosis.of_start(Root(root), start, failure)


def write(root: Path, name: str, data: bytes, mode: int = 0o755) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
    (root / name).chmod(mode)


# -- the program ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "number", "fault", "message"),
    [
        (b"#!/bin/nonesuch\n", errno.ENOENT, "missing-interpreter", "/app: its interpreter"),
        (b"#! /bin/sh\r\n", errno.ELIBACC, "missing-interpreter", r"'/bin/sh\r' is not there"),
        (b"#!\n", errno.ENOEXEC, "damaged", "names no interpreter"),
        (b"", errno.ENOEXEC, "damaged", "it is empty"),
        (b"echo\n", errno.ENOEXEC, "damaged", "nor a script with a #! line"),
        (b"\x7fELF", errno.ENOEXEC, "damaged", "a damaged ELF file"),
        (b"#!/bin/sh\n", errno.ETXTBSY, "busy", "open for writing"),
        # Nothing to be seen by now: the kernel's words.
        (b"#!/bin/sh\n", errno.EACCES, "not-executable", "exec: Permission denied: /app"),
        (b"#!/bin/sh\n", errno.E2BIG, "not-executable", "exec: Argument list too long: /app"),
    ],
)
def test_what_is_wrong_with_a_file(
    tmp_path: Path, data: bytes, number: int, fault: str, message: str
) -> None:
    write(tmp_path, "bin/sh", b"")
    write(tmp_path, "app", data)
    finding = found(tmp_path, "/app", number)
    assert finding.fault == fault
    assert message in finding.message


def test_the_first_part_that_is_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/link").symlink_to("/srv/app")
    for path, why in (
        ("/opt/a/b/app", "/opt/a is not there"),
        ("/opt/app", "no such program: not there"),
        ("/opt/link", "/opt/link is a link to /srv/app, which is not there"),
    ):
        finding = found(tmp_path, path, errno.ENOENT)
        assert (finding.fault, finding.code.exit_code) == ("not-found", 127)
        assert why in finding.message


def test_links_stay_in_the_root(tmp_path: Path) -> None:
    (tmp_path / "passwd").symlink_to("/etc/passwd")
    assert Path("/etc/passwd").exists()
    assert not Root(tmp_path).exists("/passwd")
    assert Root(tmp_path).read("/passwd", 10) == b""


def test_modes_are_those_for_the_applications_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    write(tmp_path, "opt/app", b"#!/bin/sh\n", 0o710)
    me = Ids(os.getuid(), os.getgid())
    root = Root(tmp_path)
    assert root.forbidden("/opt/app", me) == ""
    assert root.forbidden("/opt/app", me._replace(uid=me.uid + 1)) == ""
    stranger = Ids(me.uid + 1, me.gid + 1)
    assert "0710: no x for the application's user" in root.forbidden("/opt/app", stranger)
    (tmp_path / "opt").chmod(0o750)
    assert "the directory /opt (0750)" in root.forbidden("/opt/app", stranger)
    assert root.forbidden("/opt", me) == "it is a directory"


def test_a_program_of_env_that_is_not_in_path(tmp_path: Path) -> None:
    write(tmp_path, "bin/there", b"x")
    start = Start(["/app"], {"PATH": "/bin"}, "/", Ids(os.getuid(), os.getgid()))
    for line, missing in (
        (b"#!/usr/bin/env gone\n", "gone"),
        (b"#!/usr/bin/env there\n", None),
        (b"#!/usr/bin/env -S gone -x\n", None),
        (b"#!/bin/sh gone\n", None),
    ):
        write(tmp_path, "app", line)
        finding = diagnosis.unfound_by_env(Root(tmp_path), "/app", start)
        assert (finding and finding.path) == missing


# -- ELF -----------------------------------------------------------------------------------


def test_machines_have_names() -> None:
    head = b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HH", 2, 40)
    built = diagnosis_elf.machine(head)
    assert built is not None
    assert (built.name, built.native) == ("ARM (32 bit)", False)
    assert diagnosis_elf.Machine(9999, 64).name == "ELF machine 9999 (64 bit)"
    assert diagnosis_elf.machine(b"#!/bin/sh" + bytes(20)) is None


def test_this_interpreter_is_read() -> None:
    fd = os.open(sys.executable, os.O_RDONLY)
    try:
        facts = diagnosis_elf.read(fd)
    finally:
        os.close(fd)
    assert facts is not None
    assert facts.machine.native
    assert facts.interpreter is not None
    assert any(name.startswith("libc.") for name in facts.needed)
    assert libraries.missing(Root(Path("/")), os.path.realpath(sys.executable), {}) is None


@given(st.binary(max_size=400))
def test_no_file_makes_the_reader_fail_otherwise(data: bytes) -> None:
    fd = os.memfd_create("elf")
    try:
        os.write(fd, b"\x7fELF\x02\x01" + data)
        try:
            diagnosis_elf.read(fd)
        except (diagnosis_elf.DamagedElfError, OSError):
            pass
        assert os.fstat(fd).st_size == len(data) + 6
    finally:
        os.close(fd)


def test_loaders_name_the_program() -> None:
    said = (
        "hello\n/opt/app: error while loading shared libraries: libx.so.1: cannot open shared"
        " object file: No such file or directory\n"
        "Error loading shared library liby.so: No such file or directory (needed by /opt/other)\n"
    )
    assert libraries.accused(said) == ["/opt/app", "/opt/other"]


# -- the kernel's log ----------------------------------------------------------------------

AUDIT = (
    "audit: type=1326 audit(1795388257.698:576): auid=4294967295 uid=0 gid=0 ses=4294967295"
    ' pid={pid} comm="x" exe="/x" sig={sig} arch=c000003e syscall=101 compat=0 ip=0x7f code=0x8'
)
OWN = (
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=a,mems_allowed=0,"
    f"oom_memcg={{limited}},task_memcg=/n/{CGROUP},task=python3,pid=70,uid=165536"
)
GLOBAL = (
    "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,"
    f"task_memcg=/n/{CGROUP},task=a,pid=1,b,pid=70,uid=1"
)


def test_the_call_of_this_process_in_this_run() -> None:
    texts = [AUDIT.format(pid=70, sig=31), "veth0: link up"]
    call = kernel.seccomp_in(texts, 70, 1795388257.0)
    assert call == (101, 0xC000003E)
    assert call is not None
    assert kernel.name_of(call) == "ptrace"
    assert kernel.seccomp_in(texts, 71, 1795388257.0) is None
    assert kernel.seccomp_in(texts, 70, 1795388258.0) is None
    # Logged and not killed.
    assert kernel.seccomp_in([AUDIT.format(pid=70, sig=0)], 70, 0.0) is None
    assert kernel.name_of(kernel.SystemCall(99999, 0xC000003E)) == "number 99999"
    assert kernel.name_of(kernel.SystemCall(117, 0xC00000B7)) == "ptrace"


@pytest.mark.parametrize(
    ("texts", "whose"),
    [
        ([OWN.format(limited=f"/n/{CGROUP}")], kernel.Oom("limit")),
        ([OWN.format(limited="/n")], kernel.Oom("above", "/n")),
        ([GLOBAL], kernel.Oom("host")),
        (["Out of memory: Killed process 70 (x) total-vm:1kB"], kernel.Oom("host")),
        # Whose limit it was stood in the line that is not there.
        (["Memory cgroup out of memory: Killed process 70 (x) total-vm:1kB"], None),
        (["Out of memory: Killed process 71 (x) total-vm:1kB"], None),
        ([OWN.format(limited="/n").replace(UUID, "other")], None),
        # The newest counts.
        ([GLOBAL, OWN.format(limited=f"/n/{CGROUP}")], kernel.Oom("limit")),
    ],
)
def test_whose_memory(texts: list[str], whose: kernel.Oom | None) -> None:
    assert kernel.oom_in(texts, CGROUP, 70) == whose


def test_the_fate_of_an_init() -> None:
    killed = "Out of memory: Killed process 70 (nativert-init) total-vm:1kB"
    assert kernel.fate([killed], 70) == "was killed by the OOM killer"
    assert kernel.fate(["nativert-init[70]: segfault at 0 ip 0"], 70) == "had a segmentation fault"
    assert kernel.fate([killed], 7) == ""


def test_without_a_log_there_is_no_evidence(tmp_path: Path) -> None:
    assert kernel.records(path=tmp_path / "none") == []
