"""The compiled filter, executed by a small BPF machine: no kernel, no root, both machines."""

from __future__ import annotations

import errno
import os
import platform
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pyseccomp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import Code, NativertError
from nativert.isolation import seccomp, seccomp_profile

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
EPERM = 0x00050000 | errno.EPERM
ENOSYS = 0x00050000 | errno.ENOSYS
I386, ARM = 0x40000003, 0x40000028
TIOCSTI, TIOCLINUX, TCGETS = 0x5412, 0x541C, 0x5401

PROGRAMS = {machine: seccomp.compile_filter(machine) for machine in seccomp_profile.MACHINES}


def evaluate(program: bytes, nr: int, args: tuple[int, ...] = (), *, arch: int) -> int:
    """Return the filter's answer; struct seccomp_data, classic BPF: linux/filter.h."""
    padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=IIQ6Q", nr & 0xFFFFFFFF, arch, 0, *padded)
    code: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", program))
    tests: dict[int, Callable[[int, int], bool]] = {
        0x15: lambda a, k: a == k,
        0x25: lambda a, k: a > k,
        0x35: lambda a, k: a >= k,
        0x45: lambda a, k: bool(a & k),
    }
    accumulator, position = 0, 0
    while True:
        operation, jt, jf, k = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x05:
            position += k
        elif operation == 0x06:
            return k
        else:
            position += jt if tests[operation](accumulator, k) else jf


class Judge:
    """Asks one machine's filter by system call name."""

    def __init__(self, machine: str) -> None:
        self.arch = seccomp_profile.MACHINES[machine].audit_arch
        self.program = PROGRAMS[machine]

    def number(self, name: str) -> int:
        """Return the number of *name*, negative where this machine has none."""
        new = seccomp_profile.ALLOWED_NEW.get(name)
        return new if new is not None else int(pyseccomp.resolve_syscall(self.arch, name))

    def __call__(self, name: str, *args: int) -> int:
        """Return the filter's answer to the call."""
        number = self.number(name)
        assert number >= 0, name
        return evaluate(self.program, number, args, arch=self.arch)


@pytest.fixture(params=seccomp_profile.MACHINES)
def judge(request: pytest.FixtureRequest) -> Judge:
    return Judge(request.param)


def test_every_name_of_the_table_is_allowed(judge: Judge) -> None:
    # socket and the others with conditions are judged below.
    known = [n for n in seccomp_profile.ALLOWED if judge.number(n) >= 0 and n != "ioctl"]
    assert len(known) > 230
    assert {n for n in known if judge(n) != ALLOW} == set()


def test_every_name_of_the_table_exists() -> None:
    """A misspelt name would be skipped in silence."""
    x86_64 = Judge("x86_64")
    # Known to libseccomp from 2.6 on; the kernel lets it pass by itself from 6.14 on.
    newer = {"uretprobe"}
    assert {n for n in seccomp_profile.ALLOWED if x86_64.number(n) < 0} <= newer


CURRENT = """
    rseq set_robust_list futex_waitv close_range openat2 faccessat2 epoll_pwait2 statx
    landlock_create_ruleset memfd_create membarrier cachestat fchmodat2 map_shadow_stack mseal
    futex_wake futex_wait futex_requeue getrandom pidfd_open pidfd_send_signal process_mrelease
    process_madvise mlock2 copy_file_range setresuid getxattrat statmount
"""


@pytest.mark.parametrize(
    "name",
    CURRENT.split(),
)
def test_what_current_c_libraries_use_is_allowed(judge: Judge, name: str) -> None:
    assert judge(name) == ALLOW


LEFT_OUT = """
    ptrace process_vm_readv process_vm_writev kcmp keyctl add_key request_key io_uring_setup
    io_uring_enter io_uring_register userfaultfd chroot pidfd_getfd mount umount2 pivot_root
    open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr bpf perf_event_open
    kexec_load init_module finit_module delete_module open_by_handle_at setns reboot swapon
    swapoff acct sethostname setdomainname settimeofday clock_settime syslog quotactl
    fanotify_init lookup_dcookie mbind set_mempolicy move_pages vhangup
"""


@pytest.mark.parametrize(
    "name",
    LEFT_OUT.split(),
)
def test_what_a_strict_profile_leaves_out_is_refused(judge: Judge, name: str) -> None:
    assert judge(name) == EPERM


@pytest.mark.parametrize("name", ["modify_ldt", "iopl", "ioperm", "uselib", "ustat", "sysfs"])
def test_what_only_x86_has_is_refused(name: str) -> None:
    assert Judge("x86_64")(name) == EPERM


def test_clone3_does_not_exist(judge: Judge) -> None:
    assert judge("clone3") == ENOSYS


@pytest.mark.parametrize(
    ("number", "answer"),
    [(459, ENOSYS), (467, ENOSYS), (470, ENOSYS), (471, ENOSYS), (9999, ENOSYS), (462, ALLOW)],
)
def test_calls_newer_than_the_table_do_not_exist(judge: Judge, number: int, answer: int) -> None:
    assert evaluate(judge.program, number, arch=judge.arch) == answer


NAMESPACES = {
    "NEWNS": 0x00020000,
    "NEWCGROUP": 0x02000000,
    "NEWUTS": 0x04000000,
    "NEWIPC": 0x08000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}


@pytest.mark.parametrize("flag", NAMESPACES.values(), ids=NAMESPACES)
@pytest.mark.parametrize("name", ["clone", "unshare"])
@pytest.mark.parametrize("others", [0, 0x00000200 | 17, 0xFFFF_FFFF_0000_0000])
def test_new_namespaces_are_refused(judge: Judge, name: str, flag: int, others: int) -> None:
    assert judge(name, flag | others) == EPERM


def test_a_new_time_namespace_is_refused(judge: Judge) -> None:
    assert judge("unshare", 0x80) == EPERM


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("clone", 17),  # fork
        ("clone", 0x003D0F00),  # pthread_create
        ("clone", 0x4111),  # vfork
        ("clone", 0x01200000 | 0x1000 | 17),  # with a pidfd
        ("unshare", 0x400),  # CLONE_FILES
        ("unshare", 0x200),  # CLONE_FS
    ],
)
def test_threads_and_processes_are_allowed(judge: Judge, name: str, flags: int) -> None:
    assert judge(name, flags) == ALLOW


@given(flags=st.integers(0, 2**64 - 1))
@pytest.mark.parametrize("machine", seccomp_profile.MACHINES)
def test_clone_is_decided_by_the_namespace_bits(machine: str, flags: int) -> None:
    expected = EPERM if any(flags & bit for bit in NAMESPACES.values()) else ALLOW
    assert Judge(machine)("clone", flags) == expected


def test_socket_families(judge: Judge) -> None:
    allowed = {f for f in range(256) if judge("socket", f, socket.SOCK_STREAM) == ALLOW}
    assert allowed == {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
    assert {f for f in range(256) if judge("socketpair", f) == ALLOW} == {socket.AF_UNIX}


@given(request=st.integers(0, 2**64 - 1))
@pytest.mark.parametrize("machine", seccomp_profile.MACHINES)
def test_other_ioctls_are_allowed(machine: str, request: int) -> None:
    refused = request & 0xFFFFFFFF in (TIOCSTI, TIOCLINUX)
    assert Judge(machine)("ioctl", 0, request) == (EPERM if refused else ALLOW)


@pytest.mark.parametrize("request_", [TIOCSTI, TIOCLINUX])
@pytest.mark.parametrize("high", [0, 1, 0xFFFFFFFF])
def test_typing_into_a_terminal_is_refused(judge: Judge, request_: int, high: int) -> None:
    assert judge("ioctl", 0, high << 32 | request_) == EPERM
    assert judge("ioctl", 0, high << 32 | TCGETS) == ALLOW
    # The argument is looked at on ioctl only.
    assert judge("read", 0, request_) == ALLOW


# arm64 has mknodat only.
@pytest.mark.parametrize(
    ("machine", "name", "argument"),
    [("x86_64", "mknod", 1), ("x86_64", "mknodat", 2), ("aarch64", "mknodat", 2)],
)
def test_device_nodes_are_refused(machine: str, name: str, argument: int) -> None:
    judge = Judge(machine)

    def answer(kind: int) -> int:
        return judge(name, *[0] * argument, kind | 0o644)

    assert {answer(k) for k in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR)} == {EPERM}
    assert {answer(k) for k in (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)} == {ALLOW}


@pytest.mark.parametrize(
    ("persona", "answer"),
    [(0, ALLOW), (0xFFFFFFFF, ALLOW), (8, EPERM), (0x40000, EPERM), (0x400000, EPERM)],
)
def test_personality(judge: Judge, persona: int, answer: int) -> None:
    assert judge("personality", persona) == answer


@pytest.mark.parametrize("arch", [I386, ARM, 0])
def test_a_foreign_abi_is_killed(judge: Judge, arch: int) -> None:
    numbers = [*range(600), 0x40000000 | 39, 0xFFFFFFFF]
    assert {evaluate(judge.program, nr, arch=arch) for nr in numbers} == {KILL_PROCESS}


def test_x32_is_killed() -> None:
    judge = Judge("x86_64")
    answers = {evaluate(judge.program, 0x40000000 | nr, arch=judge.arch) for nr in range(600)}
    assert answers == {KILL_PROCESS}


def test_a_call_skipped_by_a_tracer_is_not_killed() -> None:
    judge = Judge("x86_64")
    assert evaluate(judge.program, 0xFFFFFFFF, arch=judge.arch) == EPERM


def test_the_kernel_takes_the_program(judge: Judge) -> None:
    assert len(judge.program) % 8 == 0
    assert len(judge.program) // 8 <= seccomp.BPF_MAXINSNS


def test_enough_of_the_native_table_is_refused() -> None:
    """Counted as for the common container profile, which gates or refuses 85 of 385."""
    judge = Judge("x86_64")
    conditional = {judge.number(c.name) for c in seccomp_profile.CONDITIONS}
    conditional.add(judge.number("ioctl"))
    # arch/x86/entry/syscalls/syscall_64.tbl of Linux 6.18: 337 to 423 do not exist.
    table = {*range(337), *range(424, 470)}
    refused = {nr for nr in table if evaluate(judge.program, nr, arch=judge.arch) != ALLOW}
    assert len(refused | conditional) >= 85
    assert len(refused - conditional) >= 75


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(NativertError, match="m68k") as raised:
        seccomp.compile_filter("m68k")
    assert raised.value.code is Code.UNENFORCEABLE


def test_the_compiled_file_is_made_once(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "yet"
    path = seccomp.cached(directory)
    assert path.name == f"seccomp-{seccomp.digest()}-{platform.machine()}.bpf"
    assert path.read_bytes() == PROGRAMS[platform.machine()]
    before = path.stat()
    assert seccomp.cached(directory) == path
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(directory) == [path.name]


@pytest.mark.parametrize("left", [b"", b"1234567"])
def test_a_file_cut_short_is_made_again(tmp_path: Path, left: bytes) -> None:
    path = seccomp.cached(tmp_path)
    path.write_bytes(left)
    assert seccomp.cached(tmp_path).read_bytes() == PROGRAMS[platform.machine()]


def test_the_second_time_needs_no_libseccomp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = seccomp.cached(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyseccomp", None)
    assert seccomp.cached(tmp_path) == path
    path.unlink()
    with pytest.raises(NativertError, match="libseccomp2"):
        seccomp.cached(tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_digest_follows_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    before = seccomp.digest()
    monkeypatch.setattr(seccomp_profile, "ALLOWED", seccomp_profile.ALLOWED[:-1])
    assert seccomp.digest() != before
