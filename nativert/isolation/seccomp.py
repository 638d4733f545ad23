"""The seccomp filter of an application: compiled once, kept as finished BPF.

The policy is data in `seccomp_profile`; libseccomp turns most of it into a program. What
libseccomp cannot say stands before that program in a few instructions of our own: ioctl
requests compared by their low 32 bits, and system calls newer than the installed library.
The application's child loads it (`launcher/init/child.c`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import struct
import threading
from pathlib import Path
from typing import Any, Final

from nativert.errors import Code, NativertError
from nativert.isolation import seccomp_profile as profile

# linux/bpf_common.h, linux/seccomp.h
BPF_MAXINSNS: Final = 4096
_LD_W_ABS: Final = 0x20
_JA: Final = 0x05
_JEQ_K: Final = 0x15
_JGE_K: Final = 0x35
_RET_K: Final = 0x06
_RET_ALLOW: Final = 0x7FFF0000
_RET_ERRNO: Final = 0x00050000

# struct seccomp_data {int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6];}; the
# low half of args[1] is at 24 on little-endian machines, and we run on no other.
_NR: Final = 0
_ARCH: Final = 4
_ARG1_LOW: Final = 24
_X32_SYSCALL_BIT: Final = 0x40000000

# CTL_OPTIMIZE = 2: a binary tree instead of a list of comparisons (libseccomp 2.5).
_BINARY_TREE: Final = 2


def digest() -> str:
    """Return 12 hex digits that change whenever the policy or its compiler does."""
    policy = (
        profile.PROFILE_VERSION,
        profile.ALLOWED,
        sorted(profile.ANSWERED.items()),
        profile.FIRST_NEW,
        sorted(profile.ALLOWED_NEW.items()),
        profile.CONDITIONS,
        sorted(profile.REFUSED_IOCTLS.items()),
    )
    return hashlib.sha256(repr(policy).encode()).hexdigest()[:12]


def compile_filter(machine: str | None = None) -> bytes:
    """Return the filter for *machine* (default: this one) as an array of sock_filter.

    Raises `NativertError` where libseccomp is missing or the machine has no profile.
    """
    machine = machine or platform.machine()
    if machine not in profile.MACHINES:
        raise NativertError(
            f"cannot compile a seccomp filter for {machine}",
            code=Code.UNENFORCEABLE,
            hint=f"profiles exist for {', '.join(profile.MACHINES)}",
        )
    program = _prologue(profile.MACHINES[machine]) + _body(profile.MACHINES[machine])
    if len(program) // 8 > BPF_MAXINSNS:
        raise NativertError(f"seccomp filter has more than {BPF_MAXINSNS} instructions")
    return program


def cached(directory: Path) -> Path:
    """Return the path of the compiled filter in *directory*, compiling it if it is absent.

    The name carries the policy's digest, so a new policy never meets an old file.
    """
    machine = platform.machine()
    path = directory / f"seccomp-{digest()}-{machine}.bpf"
    try:
        # Empty or cut short: what a power cut leaves of a file on some file systems.
        size = path.stat().st_size
        if size and size % 8 == 0:
            return path
    except FileNotFoundError:
        pass
    program = compile_filter(machine)
    directory.mkdir(parents=True, exist_ok=True)
    # Two commands may compile at once: each writes its own file, the last rename wins.
    temporary = directory / f".{path.name}.{threading.get_native_id()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, program)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _prologue(machine: profile.Machine) -> bytes:
    # Jumps are relative, so the body that follows needs no change. The kernel replays the
    # filter for each number when it is loaded (SECCOMP_ARCH_NATIVE bitmap, Linux 5.11) and
    # then skips it for calls that are allowed whatever their arguments: ioctl's argument is
    # therefore loaded on ioctl's own path only.
    requests = tuple(profile.REFUSED_IOCTLS.values())
    numbers = tuple(profile.ALLOWED_NEW.values())
    # A label is the index of an instruction.
    at_ioctl = 5
    at_new = at_ioctl + 1 + len(requests) + 1
    at_enosys = at_new + 1 + len(numbers)
    at_eperm, at_allow, body = at_enosys + 1, at_enosys + 2, at_enosys + 3

    code: list[tuple[int, int, int, int]] = []

    def load(offset: int) -> None:
        code.append((_LD_W_ABS, 0, 0, offset))

    def branch(test: int, value: int, *, yes: int | None = None, no: int | None = None) -> None:
        # Offsets count from the next instruction, which is also meant where no label is.
        here = len(code) + 1
        taken, skipped = (0 if label is None else label - here for label in (yes, no))
        code.append((test, taken, skipped, value))

    load(_ARCH)
    branch(_JEQ_K, machine.audit_arch, no=body)
    load(_NR)
    branch(_JEQ_K, machine.ioctl, yes=at_ioctl)
    branch(_JGE_K, profile.FIRST_NEW, yes=at_new, no=body)
    load(_ARG1_LOW)
    for request in requests:
        branch(_JEQ_K, request, yes=at_eperm)
    code.append((_JA, 0, 0, body - len(code) - 1))
    # x32 numbers, and the -1 of a tracer that skips a call, are libseccomp's to judge.
    branch(_JGE_K, _X32_SYSCALL_BIT, yes=body)
    for number in numbers:
        branch(_JEQ_K, number, yes=at_allow)
    # A program that tries a system call newer than this table falls back on ENOSYS only.
    code.append((_RET_K, 0, 0, _RET_ERRNO | errno.ENOSYS))
    code.append((_RET_K, 0, 0, _RET_ERRNO | errno.EPERM))
    code.append((_RET_K, 0, 0, _RET_ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _body(machine: profile.Machine) -> bytes:
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as e:
        raise NativertError(
            f"cannot compile the seccomp filter: {e}",
            code=Code.UNENFORCEABLE,
            hint="install libseccomp2",
        ) from e
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    # Without this only the calling thread of a foreign-ABI call would die.
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    if machine.audit_arch != pyseccomp.system_arch():
        rules.add_arch(machine.audit_arch)
        rules.remove_arch(pyseccomp.system_arch())
    try:
        rules.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, _BINARY_TREE)
    except OSError:
        # libseccomp before 2.5: the same policy as a list, slower only.
        pass
    for name in profile.ALLOWED:
        _add(rules, pyseccomp.ALLOW, name, machine)
    for name, answer in profile.ANSWERED.items():
        _add(rules, pyseccomp.ERRNO(answer), name, machine)
    for name, argument, mask, values in profile.CONDITIONS:
        for value in values:
            comparison = pyseccomp.Arg(argument, pyseccomp.MASKED_EQ, mask, value)
            _add(rules, pyseccomp.ALLOW, name, machine, comparison)
    with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "r+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _add(rules: Any, action: int, name: str, machine: profile.Machine, *comparisons: Any) -> None:
    import pyseccomp

    # Negative: unknown to this library (-1) or absent on the machine (a pseudo number,
    # for which libseccomp might put rules on other calls).
    if pyseccomp.resolve_syscall(machine.audit_arch, name) < 0:
        return
    # Rules take the compiling machine's number, whatever the filter is made for.
    number = pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)
    rules.add_rule_exactly(action, number, *comparisons)
