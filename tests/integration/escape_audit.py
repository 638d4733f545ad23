#!/usr/bin/env python3
"""Ask, from inside an instance, for what an instance must not get; needs only the stdlib.

    python3 escape_audit.py [--json] [--canary WORD] [--host NAMESPACE,...] [PROBE...]

One line per probe: allowed true (an escape, a leak, or a door left open), false (refused)
or null (undecidable here). The exit status is the number of allowed ones, at most 125.

Every probe runs in a child of its own and changes nothing even where it is allowed, also
as root on a bare host: files are opened for writing and never written, privileged calls get
arguments that the kernel judges after the permission. So EINVAL or ENOENT instead of EPERM
means "allowed"; each call's list says which answers mean that.

--canary WORD: the host was prepared with the word as an abstract socket's name, in an
environment variable, in a process's arguments, as the name of a network interface, of a
mount point, and of files in /tmp, /dev/shm, /run and /root.

--host mnt:[4026531841],net:[4026531840]: the host's own namespaces as /proc/self/ns tells them
there, without which older kernels leave open whether this process is in them.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import re
import resource
import signal
import socket
import stat
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Verdict = tuple["bool | None", str]
Probe = Callable[[], Verdict]

PROBES: dict[str, Probe] = {}
CANARY = ""
HOST: list[str] = []
PROBE_TIMEOUT_S = 10

# asm/unistd.h: (x86_64, aarch64); above 423 the numbers are the same.
NUMBERS = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280),
    "chroot": (161, 51), "clock_settime": (227, 112), "clone": (56, 220),
    "delete_module": (176, 106), "fanotify_init": (300, 262), "finit_module": (313, 273),
    "init_module": (175, 105), "ioctl": (16, 29), "ioperm": (173, -1), "iopl": (172, -1),
    "ioprio_set": (251, 30), "kcmp": (312, 272), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "modify_ldt": (154, -1),
    "mount": (165, 40), "move_pages": (279, 239), "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241), "personality": (135, 92), "pivot_root": (155, 41),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117),
    "reboot": (169, 142), "request_key": (249, 218), "setdomainname": (171, 162),
    "sethostname": (170, 161), "setns": (308, 268), "swapoff": (168, 225),
    "swapon": (167, 224), "syslog": (103, 116), "umount2": (166, 39), "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "clone3": (435, 435), "fsopen": (430, 430), "fspick": (433, 433),
    "io_uring_setup": (425, 425), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "open_tree": (428, 428), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
}  # fmt: skip
X86 = platform.machine() == "x86_64"

CLONE_NEW = {
    "mount": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "time": 0x80,
}  # fmt: skip
AT_FDCWD = -100
ABSENT = b"/nativert-absent"

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def syscall(name: str, *args: Any) -> int:
    """Make a raw system call; OSError if it fails."""
    number = NUMBERS[name][0 if X86 else 1]
    if number < 0:
        raise OSError(errno.ENOSYS, "not on this machine")
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = libc.syscall(ctypes.c_long(number), *converted)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return int(result)


def probe(function: Probe) -> Probe:
    """Register a probe under its function's name."""
    PROBES[function.__name__] = function
    return function


def register(name: str, function: Callable[..., Verdict], *args: Any) -> None:
    """Register one row of a table as a probe."""
    PROBES[name] = lambda: function(*args)


def word(code: int | None) -> str:
    """Return the name of an errno."""
    return errno.errorcode.get(code or 0, str(code))


def found(things: Iterable[object]) -> Verdict:
    """Allowed if there is anything; the detail names the first of it."""
    names = [str(thing) for thing in things]
    return bool(names), ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")


def read(path: str, size: int = 1 << 16) -> str:
    """Return the beginning of a file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(fd, size).decode(errors="replace")
    finally:
        os.close(fd)


def status(field: str) -> str:
    """Return a field of /proc/self/status."""
    for line in read("/proc/self/status").splitlines():
        if line.startswith(field + ":"):
            return line.split(":", 1)[1].strip()
    return ""


def capable(number: int) -> bool:
    """Whether the effective set holds this capability."""
    return bool(int(status("CapEff"), 16) >> number & 1)


class Mount:
    """One line of /proc/self/mountinfo; see proc_pid_mountinfo(5)."""

    def __init__(self, line: str) -> None:
        left, right = line.split(" - ", 1)
        fields = left.split()
        self.number, self.parent = fields[:2]
        self.path = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), fields[4])
        self.options = fields[5].split(",")
        self.propagation = fields[6:]
        self.fstype = right.split()[0]
        self.writable = "rw" in self.options and "ro" not in right.split()[2].split(",")


def mounts() -> list[Mount]:
    """Return the mounts that this process can reach: not those covered by another."""
    with open("/proc/self/mountinfo") as file:
        every = [Mount(line) for line in file]
    covered = {(m.parent, m.path) for m in every}
    return [m for m in every if (m.number, m.path) not in covered]


# --- system calls whose errno tells whether the permission was given -------------------


def call(name: str, permitted: str, arguments: Callable[[], tuple[Any, ...]]) -> Verdict:
    """Allowed if the call succeeds or fails with an errno that comes after the permission."""
    args = arguments()
    try:
        result = syscall(name, *args)
    except OSError as e:
        if e.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            return False, word(e.errno)
        return (True if word(e.errno) in permitted.split() else None), word(e.errno)
    return True, f"{name} returned {result}"


def zeros(size: int, **at: tuple[str, int]) -> Any:
    """Return a buffer of zeros with some fields set: _OFFSET=(format, value)."""
    buffer = ctypes.create_string_buffer(size)
    for offset, (form, value) in at.items():
        struct.pack_into(form, buffer, int(offset[1:]), value)
    return buffer


OWN_BYTE = ctypes.create_string_buffer(1)
OWN_IOVEC = zeros(16, _0=("=Q", ctypes.addressof(OWN_BYTE)), _8=("=Q", 1))


CALLS: list[tuple[str, str, str, Callable[[], tuple[Any, ...]]]] = [
    # Mounts. may_mount() is asked before the arguments are looked at.
    ("mount_new_filesystem", "mount", "ENODEV",
     lambda: (None, b"/tmp", b"nativert-no-such-fs", 0, None)),
    ("mount_bind", "mount", "ENOENT", lambda: (ABSENT, b"/tmp", None, 4096, None)),
    ("mount_move", "mount", "ENOENT EINVAL", lambda: (ABSENT, b"/tmp", None, 8192, None)),
    ("umount", "umount2", "EINVAL", lambda: (b"/proc/self", 0)),
    ("pivot_root", "pivot_root", "ENOENT", lambda: (ABSENT, ABSENT)),
    ("chroot", "chroot", "", lambda: (b"/",)),
    ("mount_new_api_fsopen", "fsopen", "", lambda: (b"tmpfs", 1)),
    ("mount_new_api_open_tree", "open_tree", "", lambda: (AT_FDCWD, b"/", 1)),
    ("mount_new_api_move_mount", "move_mount", "EBADF EINVAL", lambda: (-1, b"", -1, b"", 0x44)),
    ("mount_new_api_fspick", "fspick", "", lambda: (AT_FDCWD, b"/", 1)),
    ("mount_new_api_setattr", "mount_setattr", "ENOENT",
     lambda: (AT_FDCWD, ABSENT, 0, zeros(32, _0=("=Q", 2)), 32)),
    # Other processes.
    ("ptrace_child", "ptrace", "", lambda: (0, 0, None, None)),
    ("process_vm_readv_self", "process_vm_readv", "EFAULT",
     lambda: (os.getpid(), OWN_IOVEC, 1, OWN_IOVEC, 1, 0)),
    ("process_vm_writev_self", "process_vm_writev", "EFAULT",
     lambda: (os.getpid(), OWN_IOVEC, 1, OWN_IOVEC, 1, 0)),
    ("process_vm_readv_init", "process_vm_readv", "EFAULT",
     lambda: (1, OWN_IOVEC, 1, zeros(16, _0=("=Q", 4096), _8=("=Q", 1)), 1, 0)),
    ("kcmp", "kcmp", "", lambda: (os.getpid(), os.getpid(), 0, 0, 0)),
    ("pidfd_getfd_self", "pidfd_getfd", "",
     lambda: (syscall("pidfd_open", os.getpid(), 0), 1, 0)),
    ("pidfd_getfd_init", "pidfd_getfd", "EBADF", lambda: (syscall("pidfd_open", 1, 0), 0, 0)),
    ("move_pages_init", "move_pages", "ENODEV", lambda: (1, 0, None, None, None, 0)),
    # Kernel facilities with a history.
    ("keyctl", "keyctl", "", lambda: (0, -2, 1)),
    ("add_key", "add_key", "", lambda: (b"user", b"nativert-audit", b"x", 1, -2)),
    ("request_key", "request_key", "ENOKEY",
     lambda: (b"user", b"nativert-audit-absent", None, 0)),
    ("io_uring", "io_uring_setup", "", lambda: (1, zeros(120))),
    ("bpf", "bpf", "",  # BPF_MAP_CREATE of an array of one element
     lambda: (0, zeros(72, _0=("=I", 2), _4=("=I", 4), _8=("=I", 4), _12=("=I", 1)), 72)),
    ("perf_event_open", "perf_event_open", "",  # a software event that counts nothing
     lambda: (zeros(112, _0=("=I", 1), _4=("=I", 112), _8=("=Q", 9), _40=("=Q", 0x60)),
              0, -1, -1, 0)),
    ("userfaultfd", "userfaultfd", "", lambda: (0o2000000,)),
    ("userfaultfd_user_mode", "userfaultfd", "", lambda: (0o2000001,)),
    ("fanotify", "fanotify_init", "", lambda: (0x200, 0)),
    ("init_module", "init_module", "ENOEXEC EFAULT EINVAL", lambda: (b"", 0, b"")),
    ("finit_module", "finit_module", "EBADF ENOEXEC EINVAL", lambda: (-1, b"", 0)),
    ("delete_module", "delete_module", "ENOENT", lambda: (b"nativert_absent", 0o4000)),
    ("kexec_load", "kexec_load", "EINVAL", lambda: (0, 0, None, 0xFFFF)),
    ("kexec_file_load", "kexec_file_load", "EINVAL EBADF", lambda: (-1, -1, 0, b"", 0xFFFF)),
    ("open_by_handle_at", "open_by_handle_at", "ESTALE EINVAL EOPNOTSUPP",
     lambda: (os.open("/", os.O_RDONLY), zeros(16, _0=("=I", 8), _4=("=i", 1)), 0)),
    ("personality_no_randomize", "personality", "", lambda: (0x0040000,)),
    ("personality_read_implies_exec", "personality", "", lambda: (0x0400000,)),
    ("modify_ldt", "modify_ldt", "", lambda: (0, zeros(16), 16)),
    ("iopl", "iopl", "", lambda: (3,)),
    ("ioperm", "ioperm", "", lambda: (0x80, 1, 1)),
    # The host itself. The capability is asked first, then these arguments are refused.
    ("reboot", "reboot", "EINVAL", lambda: (0, 0, 0, None)),
    ("sethostname", "sethostname", "EINVAL", lambda: (b"x", -1)),
    ("setdomainname", "setdomainname", "EINVAL", lambda: (b"x", -1)),
    ("adjust_clock", "adjtimex", "EINVAL",  # ADJ_TICK, with a tick of 0
     lambda: (zeros(208, _0=("=I", 0x4000)),)),
    ("swapon", "swapon", "ENOENT", lambda: (ABSENT, 0)),
    ("swapoff", "swapoff", "ENOENT", lambda: (ABSENT,)),
    ("acct", "acct", "ENOENT", lambda: (ABSENT,)),
    ("dmesg", "syslog", "EINVAL", lambda: (3, None, 0)),
    ("io_priority_realtime", "ioprio_set", "", lambda: (1, 0, 1 << 13 | 4)),
]  # fmt: skip

for _row in CALLS:
    register(_row[0], call, *_row[1:])

for _name, _flag in CLONE_NEW.items():
    register(f"unshare_{_name}_namespace", call, "unshare", "", lambda f=_flag: (f,))


def clone_namespace(name: str) -> Verdict:
    """Fork into a new user namespace by a raw call."""
    flags = CLONE_NEW["user"]
    if name == "clone":
        pid = syscall("clone", flags | signal.SIGCHLD, 0, 0, 0, 0)
    else:
        pid = syscall("clone3", zeros(88, _0=("=Q", flags), _32=("=Q", signal.SIGCHLD)), 88)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True, f"{name} made a user namespace"


register("clone_user_namespace", clone_namespace, "clone")
register("clone3_user_namespace", clone_namespace, "clone3")


@probe
def clock_settime() -> Verdict:
    """An invalid time is refused before the capability is asked: then the set decides."""
    allowed, detail = call("clock_settime", "", lambda: (0, zeros(16, _8=("=q", 2 * 10**9))))
    return (capable(25), "CAP_SYS_TIME decides") if allowed is None else (allowed, detail)


# --- namespaces ------------------------------------------------------------------------

# include/linux/proc_ns.h and nsfs.h: inode numbers of the initial namespaces.
INITIAL = {
    "net": 0xEFFFFFF9, "mnt": 0xEFFFFFF8, "time": 0xEFFFFFFA, "cgroup": 0xEFFFFFFB,
    "pid": 0xEFFFFFFC, "user": 0xEFFFFFFD, "uts": 0xEFFFFFFE, "ipc": 0xEFFFFFFF,
}  # fmt: skip


def initial_namespace(kind: str) -> Verdict:
    """Whether this process is in the host's namespace."""
    inode = os.stat(f"/proc/self/ns/{kind}").st_ino
    name = f"{kind}:[{inode}]"
    if any(host.startswith(f"{kind}:") for host in HOST):
        return name in HOST or inode == INITIAL[kind], name
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    # Those of mnt and net were numbered like any other before Linux 6.18.
    telling = kind not in ("mnt", "net") or release >= (6, 18)
    return (inode == INITIAL[kind] if telling else None), name


for _name in ("user", "pid", "uts", "ipc", "cgroup", "mnt", "net"):
    register(f"host_{_name}_namespace", initial_namespace, _name)


def join_namespace_of_init(kind: str) -> Verdict:
    """Join a namespace of PID 1."""
    syscall("setns", os.open(f"/proc/1/ns/{kind}", os.O_RDONLY), 0)
    return True, f"joined /proc/1/ns/{kind}"


for _name in ("user", "mnt", "net", "pid"):
    register(f"join_{_name}_namespace_of_init", join_namespace_of_init, _name)


def host_id(table: str, number: int) -> int | None:
    """Return what an id of this user namespace is outside of it."""
    for line in read(f"/proc/self/{table}").splitlines():
        inside, outside, length = map(int, line.split())
        if inside <= number < inside + length:
            return outside + number - inside
    return None


@probe
def uid_mapped_to_host_root() -> Verdict:
    """A user id that is the host's root owns the host's files."""
    host = host_id("uid_map", os.getuid())
    return host == 0, f"uid {os.getuid()} is {host} outside"


# --- credentials -----------------------------------------------------------------------


def capability_set(field: str) -> Verdict:
    """Any capability in a set of /proc/self/status."""
    return int(status(field), 16) != 0, status(field)


for _name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"):
    register(f"capabilities_{_name[3:].lower()}", capability_set, _name)


@probe
def no_new_privs_missing() -> Verdict:
    return status("NoNewPrivs") != "1", f"NoNewPrivs {status('NoNewPrivs')}"


@probe
def seccomp_missing() -> Verdict:
    return status("Seccomp") != "2", f"Seccomp {status('Seccomp')}"


@probe
def become_root() -> Verdict:
    """Who is uid 0 already has gained something only where that is the host's root."""
    gained = os.getuid() != 0
    os.setresuid(0, 0, 0)
    return gained or host_id("uid_map", 0) == 0, "uid 0"


@probe
def become_root_group() -> Verdict:
    gained = 0 not in {os.getgid(), *os.getgroups()}
    os.setresgid(0, 0, 0)
    return gained or host_id("gid_map", 0) == 0, "gid 0"


@probe
def set_groups() -> Verdict:
    os.setgroups([0])
    return True, "group 0 added"


@probe
def root_groups_inherited() -> Verdict:
    groups = {os.getgid(), *os.getgroups()}
    return 0 in {host_id("gid_map", group) for group in groups}, f"groups {sorted(groups)}"


@probe
def setuid_binaries() -> Verdict:
    """Set-user-ID programs that would take effect here."""
    if status("NoNewPrivs") == "1":
        return False, "no_new_privs"
    names = [f"{d}/{n}" for d in ("/usr/bin", "/usr/sbin", "/bin") for n in safe_list(d)]
    return found(
        n
        for n in names
        if (s := os.lstat(n)).st_mode & stat.S_ISUID
        and s.st_uid == 0
        and not os.statvfs(n).f_flag & os.ST_NOSUID
    )


@probe
def setuid_file_takes_effect() -> Verdict:
    """A file with the bit set on a mount that honours it."""
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0o4755)
        honoured = not os.statvfs(file.name).f_flag & os.ST_NOSUID
        return honoured and status("NoNewPrivs") != "1", file.name


# --- mounts and cgroups ----------------------------------------------------------------


@probe
def writable_mounts_without_nosuid_nodev() -> Verdict:
    """Except devpts and single bound devices, which nodev would break."""
    return found(
        m.path
        for m in mounts()
        if m.writable
        and m.fstype not in ("devpts", "proc", "sysfs")
        and not {"nosuid", "nodev"} <= set(m.options)
        and not (os.path.exists(m.path) and stat.S_ISCHR(os.stat(m.path).st_mode))
    )


@probe
def mount_propagation() -> Verdict:
    return found(f"{m.path} {m.propagation[0]}" for m in mounts() if m.propagation)


@probe
def root_writable_mount() -> Verdict:
    return found(m.path for m in mounts() if m.path == "/" and m.writable)


@probe
def proc_or_sys_writable_mount() -> Verdict:
    """Sysfs as a whole, and /proc/sys through whichever mount covers it."""
    paths = ("/sys", "/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger")
    # The parameters of the file system under the path: read-only for proc's own paths.
    return found(p for p in paths if os.path.exists(p) and not os.statvfs(p).f_flag & os.ST_RDONLY)


def cgroup_mounts() -> list[str]:
    """Return where cgroup hierarchies are mounted."""
    return [m.path for m in mounts() if m.fstype in ("cgroup", "cgroup2")]


def openable(paths: Iterable[str]) -> Verdict:
    """Any of these files that can be opened for writing."""
    opened = []
    for path in paths:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            opened.append(path)
        except OSError as e:
            # Busy being executed: the permission was given before.
            if e.errno == errno.ETXTBSY:
                opened.append(path)
    return found(opened)


@probe
def cgroupfs_visible() -> Verdict:
    return found(cgroup_mounts())


@probe
def cgroupfs_writable() -> Verdict:
    names = ("cgroup.procs", "tasks", "memory.max", "memory.limit_in_bytes", "pids.max")
    return openable(f"{m}/{n}" for m in cgroup_mounts() for n in names)


@probe
def cgroup_release_agent() -> Verdict:
    return openable(f"{m}/release_agent" for m in cgroup_mounts())


@probe
def cgroup_create() -> Verdict:
    for mount in cgroup_mounts():
        path = f"{mount}/nativert-audit-{os.getpid()}"
        try:
            os.mkdir(path)
        except OSError:
            continue
        os.rmdir(path)
        return True, path
    return False, "no cgroup directory is writable"


def mount_cgroup(fstype: str, flags: int) -> Verdict:
    """Mount a hierarchy in a mount namespace of the probe's own (CVE-2022-0492)."""
    syscall("unshare", flags)
    if flags & CLONE_NEW["user"]:
        with open("/proc/self/uid_map", "w") as file:
            file.write(f"0 {os.getuid()} 1")
    else:
        # Only this namespace ends with the probe: nothing may leave it.
        syscall("mount", b"none", b"/", None, 1 << 18 | 16384, None)
    target = tempfile.mkdtemp()
    try:
        # A hierarchy without controllers takes none from the host.
        data = b"none,name=nativert-audit" if fstype == "cgroup" else None
        syscall("mount", b"none", target.encode(), fstype.encode(), 0, data)
        syscall("umount2", target.encode(), 2)
    finally:
        os.rmdir(target)
    return True, f"mounted {fstype}"


_ALL = CLONE_NEW["user"] | CLONE_NEW["mount"] | CLONE_NEW["cgroup"]
register("mount_cgroup_v1", mount_cgroup, "cgroup", CLONE_NEW["mount"])
register("mount_cgroup_v2", mount_cgroup, "cgroup2", CLONE_NEW["mount"])
register("mount_cgroup_v1_by_user_namespace", mount_cgroup, "cgroup", _ALL)
register("mount_cgroup_v2_by_user_namespace", mount_cgroup, "cgroup2", _ALL)


@probe
def cgroup_path_shown() -> Verdict:
    """In a cgroup namespace of its own a process is at / of every hierarchy."""
    with open("/proc/self/cgroup") as file:
        return found(line.strip() for line in file if line.rstrip("\n").split(":", 2)[2] != "/")


# --- devices ---------------------------------------------------------------------------


def make_device(kind: int, major: int, minor: int) -> Verdict:
    """Make a device node and remove it again; opening it is another matter."""
    path = os.path.join(tempfile.gettempdir(), f"nativert-audit-{os.getpid()}")
    os.mknod(path, kind | 0o600, os.makedev(major, minor))
    os.unlink(path)
    return True, f"made {major}:{minor}"


register("mknod_character_device", make_device, stat.S_IFCHR, 1, 3)
register("mknod_block_device", make_device, stat.S_IFBLK, 8, 0)


def device_nodes() -> Iterator[tuple[str, os.stat_result]]:
    """Walk /dev without following links."""
    for directory, _, names in os.walk("/dev"):
        for name in names:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
                yield path, info


@probe
def open_block_devices() -> Verdict:
    opened = []
    for path, info in device_nodes():
        if stat.S_ISBLK(info.st_mode):
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
                opened.append(path)
            except OSError:
                pass
    return found(opened)


@probe
def unexpected_device_nodes() -> Verdict:
    """By access(2) only: opening a watchdog would start it."""
    usual = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    usual = {f"/dev/{n}" for n in usual} | {"/dev/pts/ptmx"}
    return found(
        path
        for path, _ in device_nodes()
        if path not in usual
        and not re.fullmatch(r"/dev/pts/\d+", path)
        and (os.access(path, os.R_OK) or os.access(path, os.W_OK))
    )


def open_path(path: str, flags: int) -> Verdict:
    """Open and close a file."""
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError as e:
        return e.errno == errno.ETXTBSY, word(e.errno)
    return True, f"opened {path}"


for _name in ("mem", "port", "kvm", "fuse", "net/tun", "loop-control", "mapper/control"):
    register(f"open_dev_{re.sub(r'[^a-z]', '_', _name)}", open_path, f"/dev/{_name}", os.O_RDWR)
for _name in ("uinput", "userfaultfd", "vhost-net", "vhost-vsock", "vsock", "console", "tty0"):
    register(f"open_dev_{re.sub(r'[^a-z0]', '_', _name)}", open_path, f"/dev/{_name}", os.O_RDONLY)
register("kmsg_read", open_path, "/dev/kmsg", os.O_RDONLY)
register("kmsg_write", open_path, "/dev/kmsg", os.O_WRONLY)


# --- terminals -------------------------------------------------------------------------


def terminal_ioctl(request: int, permitted: tuple[int, ...]) -> Verdict:
    """Ask it of a pseudo-terminal of the probe's own, which is its controlling one."""
    _, slave = os.openpty()
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    # TIOCLINUX takes its subcode from here; 255 is none.
    try:
        syscall("ioctl", slave, request, ctypes.create_string_buffer(b"\xff", 2))
    except OSError as e:
        return e.errno in permitted, word(e.errno)
    return True, f"ioctl {request:#x} done"


register("tiocsti", terminal_ioctl, 0x5412, ())
register("tiocsti_high_bits", terminal_ioctl, 0x1_0000_5412, ())
register("tioclinux", terminal_ioctl, 0x541C, (errno.ENOTTY, errno.EINVAL))
register("tioclinux_high_bits", terminal_ioctl, 0x1_0000_541C, (errno.ENOTTY, errno.EINVAL))


@probe
def terminal_of_the_host() -> Verdict:
    """A controlling terminal, or a standard stream, that is not in this /dev/pts."""
    own = {os.stat(f"/dev/pts/{n}").st_rdev for n in safe_list("/dev/pts") if n.isdigit()}
    foreign = []
    for fd in (0, 1, 2):
        if os.isatty(fd) and os.fstat(fd).st_rdev not in own:
            foreign.append(f"descriptor {fd}")
    # Field 7 of stat is the controlling terminal in the kernel's own encoding.
    number = int(read("/proc/self/stat").rpartition(")")[2].split()[4])
    device = os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)
    if number and device not in own:
        foreign.append(f"controlling terminal {number >> 8}:{number & 0xFF}")
    return found(foreign)


# --- /proc and /sys --------------------------------------------------------------------


def safe_list(path: str) -> list[str]:
    """List a directory, or nothing."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def readable(path: str) -> Verdict:
    """A masked path is an empty file or directory, or is not there."""
    if os.path.isdir(path):
        return found(os.listdir(path))
    text = read(path, 64)
    return bool(text), f"read {len(text)} bytes" if text else "empty"


MASKED_PROC = """
    acpi asound interrupts kallsyms kcore keys kpagecgroup kpagecount
    kpageflags latency_stats scsi sched_debug slabinfo timer_list timer_stats vmallocinfo
"""
MASKED_SYS = """
    firmware block class/block kernel/debug kernel/tracing kernel/security fs/bpf fs/pstore
"""
for _name in MASKED_PROC.split():
    register(f"read_proc_{_name.replace('/', '_').replace('-', '_')}", readable, f"/proc/{_name}")
# Reading it would consume the messages of whoever logs them.
register("read_proc_kmsg", open_path, "/proc/kmsg", os.O_RDONLY)
for _name in MASKED_SYS.split():
    register(f"read_sys_{_name.replace('/', '_')}", readable, f"/sys/{_name}")
RAPL = "/sys/devices/virtual/powercap/intel-rapl/intel-rapl:0/energy_uj"
register("read_sys_energy_counter", readable, RAPL)

WRITE_PATHS = {
    "write_core_pattern": "/proc/sys/kernel/core_pattern",
    "write_modprobe": "/proc/sys/kernel/modprobe",
    "write_sysctl_hostname": "/proc/sys/kernel/hostname",
    "write_ns_last_pid": "/proc/sys/kernel/ns_last_pid",
    "write_drop_caches": "/proc/sys/vm/drop_caches",
    "write_ip_forward": "/proc/sys/net/ipv4/ip_forward",
    "write_binfmt_misc": "/proc/sys/fs/binfmt_misc/register",
    "write_sysrq_trigger": "/proc/sysrq-trigger",
    "write_mtrr": "/proc/mtrr",
    "write_uevent_helper": "/sys/kernel/uevent_helper",
    "write_sys_power_state": "/sys/power/state",
    "write_init_memory": "/proc/1/mem",
    "write_init_oom_score_adj": "/proc/1/oom_score_adj",
    "overwrite_init_program": "/proc/1/exe",
    "overwrite_own_program": "/proc/self/exe",
    "overwrite_parent_program": f"/proc/{os.getppid()}/exe",
    "write_etc_passwd": "/etc/passwd",
    "write_etc_ld_so_cache": "/etc/ld.so.cache",
    "write_usr_os_release": "/usr/lib/os-release",
}
for _name, _path in WRITE_PATHS.items():
    register(_name, open_path, _path, os.O_WRONLY)


def writable_below(root: str, skip: tuple[str, ...] = ()) -> Verdict:
    """Files below *root* that access(2) calls writable."""
    writable = []
    deadline = time.monotonic() + PROBE_TIMEOUT_S / 2
    for directory, names, files in os.walk(root):
        names[:] = [n for n in names if os.path.join(directory, n) not in skip]
        for name in files:
            path = os.path.join(directory, name)
            if not os.path.islink(path) and os.access(path, os.W_OK, effective_ids=True):
                writable.append(path)
        if len(writable) > 6 or time.monotonic() > deadline:
            break
    return found(writable)


register("writable_below_proc_sys", writable_below, "/proc/sys")
register("writable_below_sys", writable_below, "/sys", tuple(cgroup_mounts()))


@probe
def writable_in_proc() -> Verdict:
    """Except pressure, which the kernel makes writable for everybody."""
    tops = [n for n in safe_list("/proc") if not n.isdigit()]
    tops = [n for n in tops if n not in ("self", "thread-self", "sys", "pressure", "net", "mounts")]
    writable = []
    for top in (f"/proc/{n}" for n in tops):
        if os.path.isdir(top):
            writable += writable_below(top)[1].split(", ")
        elif os.access(top, os.W_OK, effective_ids=True):
            writable.append(top)
    return found(filter(None, writable))


def proc_link(path: str) -> Verdict:
    """Whether a magic link of another process can be followed."""
    return True, f"{len(os.listdir(path))} entries in {path}"


for _name in ("root", "cwd", "fd", "map_files"):
    register(f"proc_1_{_name}", proc_link, f"/proc/1/{_name}")
for _name in ("environ", "maps", "auxv", "stack", "syscall"):
    register(f"proc_1_{_name}", readable, f"/proc/1/{_name}")


@probe
def host_processes_visible() -> Verdict:
    """Kernel threads, or the canary, in this /proc."""
    seen = []
    for pid in filter(str.isdigit, safe_list("/proc")):
        try:
            text = read(f"/proc/{pid}/stat")
            arguments = read(f"/proc/{pid}/cmdline")
        except OSError:
            continue
        # Field 9 of stat, PF_KTHREAD.
        if int(text.rpartition(")")[2].split()[6]) & 0x00200000:
            seen.append(f"kernel thread {pid}")
        elif CANARY and CANARY in arguments and "--canary" not in arguments:
            seen.append(f"canary process {pid}")
    return found(seen)


@probe
def proc_of_another_pid_namespace() -> Verdict:
    return os.readlink("/proc/self") != str(os.getpid()), os.readlink("/proc/self")


# --- PID 1 and limits ------------------------------------------------------------------


@probe
def signal_init() -> Verdict:
    """Signal 0 first: what it is refused, every signal is; where it is not, none is sent."""
    if os.getpid() == 1:
        return None, "this is PID 1"
    try:
        os.kill(1, 0)
        return True, "kill(1, 0) succeeded"
    except PermissionError:
        pass
    taken = []
    for number in sorted(signal.valid_signals()):
        try:
            os.kill(1, number)
            taken.append(number)
        except PermissionError:
            pass
    return found(taken)


@probe
def signal_init_by_pidfd() -> Verdict:
    signal.pidfd_send_signal(os.pidfd_open(1), 0)
    return True, "signal 0 taken"


@probe
def limits_of_init() -> Verdict:
    return True, str(resource.prlimit(1, resource.RLIMIT_NOFILE))


@probe
def priority_of_init() -> Verdict:
    os.setpriority(os.PRIO_PROCESS, 1, os.getpriority(os.PRIO_PROCESS, 1))
    return True, "set to what it was"


@probe
def affinity_of_init() -> Verdict:
    os.sched_setaffinity(1, os.sched_getaffinity(1))
    return True, "set to what it was"


@probe
def raise_nice() -> Verdict:
    os.nice(-1)
    return True, f"nice {os.nice(0)}"


@probe
def realtime_scheduling() -> Verdict:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return True, "SCHED_FIFO"


@probe
def raise_rlimit() -> Verdict:
    """Raise the first hard limit that is a number."""
    for name in ("NOFILE", "CORE", "MEMLOCK", "NPROC", "MSGQUEUE"):
        which = getattr(resource, f"RLIMIT_{name}")
        soft, hard = resource.getrlimit(which)
        if hard != resource.RLIM_INFINITY:
            try:
                resource.setrlimit(which, (soft, hard + 1))
            except ValueError as e:
                return False, f"{name}: {e}"
            return True, f"{name} raised to {hard + 1}"
    return None, "every limit is infinite"


@probe
def core_dumps() -> Verdict:
    """core_pattern may pipe to a program on the host."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    return hard != 0, f"hard limit {hard}"


@probe
def lower_oom_score_adj() -> Verdict:
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(fd, b"-1000")
    return True, "-1000"


# --- foreign ABIs ----------------------------------------------------------------------


@probe
def x32_abi() -> Verdict:
    if not X86:
        return None, "x86-64 only"
    result = libc.syscall(ctypes.c_long(0x40000000 | 39))
    return (True, "getpid answered") if result > 0 else (False, word(ctypes.get_errno()))


@probe
def i386_abi() -> Verdict:
    if not X86:
        return None, "x86-64 only"
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # push rbx; mov eax, 20 (getpid); int 0x80; pop rbx; ret
    page.write(bytes.fromhex("53 b8 14 00 00 00 cd 80 5b c3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    return result > 0, f"getpid answered {result}"


# --- network ---------------------------------------------------------------------------


def open_socket(family: int, kind: int, protocol: int) -> Verdict:
    """Open a socket; a family that this kernel lacks decides nothing."""
    try:
        socket.socket(family, kind, protocol).close()
    except OSError as e:
        lacking = e.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)
        return (None if lacking else False), word(e.errno)
    return True, f"family {family} type {kind}"


register("vsock_socket", open_socket, 40, socket.SOCK_STREAM, 0)
register("alg_socket", open_socket, 38, socket.SOCK_SEQPACKET, 0)
register("packet_socket", open_socket, 17, socket.SOCK_RAW, 3)
register("raw_socket", open_socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
register("raw_socket_v6", open_socket, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)


@probe
def rare_socket_families() -> Verdict:
    taken = set()
    for family in set(range(1, 46)) - {1, 2, 10, 16, 17, 38, 40}:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, 5):
            try:
                socket.socket(family, kind, 0).close()
                taken.add(family)
            except OSError:
                pass
    return found(sorted(taken))


def netlink(protocol: int, message_type: int, payload: bytes) -> Verdict:
    """Send one request with NLM_F_ACK; the answer's errno decides; see netlink(7)."""
    with socket.socket(16, socket.SOCK_RAW, protocol) as nl:
        nl.settimeout(2)
        nl.send(struct.pack("=IHHII", 16 + len(payload), message_type, 5, 1, 0) + payload)
        kind, code = struct.unpack_from("=4xH10xi", nl.recv(4096))
    # NLMSG_ERROR carries the negative errno, 0 as an acknowledgement.
    code = -code if kind == 2 else 0
    return code not in (errno.EPERM, errno.EACCES), word(code) if code else "accepted"


# RTM_NEWLINK of a link that does not exist; NFT_MSG_GETGEN, which only asks.
register("netlink_change_links", netlink, 0, 16, struct.pack("=BxHiII", 0, 0, 1 << 30, 0, 0))
register("netlink_nftables", netlink, 12, 10 << 8 | 16, struct.pack("=BBH", 0, 0, 0))


@probe
def host_interfaces_visible() -> Verdict:
    """Interfaces with hardware behind them, bridges, the canary."""
    seen = [n for _, n in socket.if_nameindex() if CANARY and n == CANARY[:15]]
    for name in safe_list("/sys/class/net"):
        if any(os.path.exists(f"/sys/class/net/{name}/{part}") for part in ("device", "bridge")):
            seen.append(name)
    return found(seen)


@probe
def host_abstract_sockets() -> Verdict:
    if not CANARY:
        return None, "needs --canary"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(b"\0" + CANARY.encode())
    return True, f"connected to @{CANARY}"


@probe
def host_sockets() -> Verdict:
    """Control sockets of the host that take a connection."""
    taken = []
    for path in (
        "/run/nativert/api.sock", "/run/docker.sock", "/var/run/docker.sock",
        "/run/containerd/containerd.sock", "/run/podman/podman.sock", "/run/crio/crio.sock",
        "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/systemd/notify",
        "/run/systemd/journal/socket", "/dev/log",
    ):  # fmt: skip
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                with socket.socket(socket.AF_UNIX, kind) as client:
                    client.connect(path)
                    taken.append(path)
            except OSError:
                pass
    return found(taken)


# --- what was inherited, what can be read ----------------------------------------------

# Taken before the audit opens anything.
INHERITED = [fd for fd in range(3, 1024) if os.path.lexists(f"/proc/self/fd/{fd}")]


@probe
def inherited_descriptors() -> Verdict:
    return found(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}" for fd in INHERITED)


@probe
def descriptor_of_a_directory() -> Verdict:
    """A directory, or a working directory outside this root (CVE-2024-21626)."""
    seen = [f"fd {fd}" for fd in (0, 1, 2, *INHERITED) if os.path.isdir(f"/proc/self/fd/{fd}")]
    if os.readlink("/proc/self/cwd").startswith("(unreachable)"):
        seen.append("working directory")
    return found(seen)


@probe
def host_environment() -> Verdict:
    """The canary, or variables that only a session on the host has."""
    names = (
        "SSH_", "SUDO_", "DBUS_", "XDG_", "NOTIFY_", "INVOCATION_ID", "LISTEN_", "LD_",
        "VIRTUAL_ENV", "MAIL", "SYSTEMD_", "JOURNAL_",
    )  # fmt: skip
    return found(
        key
        for key, value in os.environ.items()
        if key.startswith(names) or (CANARY and CANARY in key + value)
    )


SENSITIVE = {
    "read_etc_shadow": "/etc/shadow",
    "read_etc_shadow_backup": "/etc/shadow-",
    "read_etc_gshadow": "/etc/gshadow",
    "read_etc_sudoers": "/etc/sudoers",
    "read_etc_ssl_private": "/etc/ssl/private",
    "read_etc_nativert": "/etc/nativert",
    "read_var_lib_nativert": "/var/lib/nativert",
    "read_run_nativert": "/run/nativert",
    "read_root_home": "/root",
    "read_home": "/home",
    "read_boot": "/boot",
    "read_var_log_journal": "/var/log/journal",
}
for _name, _path in SENSITIVE.items():
    register(_name, readable, _path)


@probe
def read_ssh_host_keys() -> Verdict:
    keys = [f"/etc/ssh/{n}" for n in safe_list("/etc/ssh") if n.endswith("_key")]
    return found(k for k in keys if os.access(k, os.R_OK))


@probe
def canary_files() -> Verdict:
    if not CANARY:
        return None, "needs --canary"
    places = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/root", "/mnt")
    return found(p for d in places if os.path.lexists(p := f"{d}/{CANARY}"))


@probe
def host_mounts_visible() -> Verdict:
    if not CANARY:
        return None, "needs --canary"
    return found(m.path for m in mounts() if CANARY in m.path)


@probe
def shared_memory_of_others() -> Verdict:
    """System V segments: a new IPC namespace has none."""
    return found(line.split()[1] for line in read("/proc/sysvipc/shm").splitlines()[1:])


def create_in(directory: str) -> Verdict:
    """Create a file and remove it again."""
    path = os.path.join(directory, f".nativert-audit-{os.getpid()}")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    os.unlink(path)
    return True, f"made {path}"


DIRECTORIES = "/ /usr /usr/bin /usr/lib /bin /sbin /lib /etc /opt /boot /dev /proc /sys /var"
for _path in DIRECTORIES.split():
    register(f"create_in_{_path.strip('/').replace('/', '_') or 'root'}", create_in, _path)


# --- running ---------------------------------------------------------------------------


def judge(function: Probe) -> Verdict:
    """Run one probe in a child, so that what it changes of itself ends with it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(PROBE_TIMEOUT_S)
        try:
            verdict = function()
        except OSError as e:
            verdict = False, word(e.errno)
        except Exception as e:  # the audit goes on, the probe is undecided
            verdict = None, f"{type(e).__name__}: {e}"
        os.write(writer, json.dumps(verdict).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    _, code = os.waitpid(pid, 0)
    if answer:
        allowed, detail = json.loads(answer)
        return allowed, detail
    number = -os.waitstatus_to_exitcode(code)
    # The filter kills for a foreign ABI; anything else is the probe's own failure.
    return (False if number == signal.SIGSYS else None), f"killed by signal {number}"


def main() -> int:
    """Run the probes; return how many were allowed."""
    global CANARY, HOST
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--canary", default="", metavar="WORD")
    parser.add_argument("--host", default="", metavar="NAMESPACE,...")
    parser.add_argument("probes", nargs="*", metavar="PROBE")
    options = parser.parse_args()
    CANARY, HOST = options.canary, options.host.split(",")
    allowed_count = 0
    for name in options.probes or PROBES:
        allowed, detail = judge(PROBES[name])
        allowed_count += allowed is True
        if options.json:
            print(json.dumps({"probe": name, "allowed": allowed, "detail": detail}), flush=True)  # noqa: T201
        else:
            text = {True: "ALLOWED", False: "refused", None: "-"}[allowed]
            print(f"{text:8}{name:40}{detail}", flush=True)  # noqa: T201
    return min(allowed_count, 125)


if __name__ == "__main__":
    sys.exit(main())
