"""What an application may ask of the kernel: names of system calls, as data.

Everything that is not named here is refused. The list follows the common container
profile (moby's default) without what needs a capability, and without what let programs
look into others or reach rarely used kernel code: ptrace and its kin, keyrings, io_uring,
userfaultfd, bpf, perf, other personalities, namespaces, mounts. Increase
`PROFILE_VERSION` when a change of the compiler changes what the same data mean.
"""

from __future__ import annotations

import errno
import stat
from typing import Final, NamedTuple

PROFILE_VERSION: Final = 1


class Machine(NamedTuple):
    """What differs between machines: AUDIT_ARCH_* of linux/audit.h, __NR_ioctl."""

    audit_arch: int
    ioctl: int


MACHINES: Final = {
    "x86_64": Machine(audit_arch=0xC000003E, ioctl=16),
    "aarch64": Machine(audit_arch=0xC00000B7, ioctl=29),
}

# Names that a machine does not have (open on arm64) resolve to nothing there.
_FILES: Final = """
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat
    faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl
    fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate
    futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek
    lsetxattr lstat mkdir mkdirat name_to_handle_at newfstatat open openat openat2 pipe pipe2
    pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
    removexattr rename renameat renameat2 rmdir sendfile setxattr splice stat statfs statx
    symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime
    utimensat utimes vmsplice write writev
"""
_EVENTS: Final = """
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit poll ppoll pselect6
    select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime
"""
_MEMORY: Final = """
    brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock
    mlock2 mlockall mmap mprotect mremap msync munlock munlockall munmap pkey_alloc pkey_free
    pkey_mprotect process_madvise process_mrelease remap_file_pages
"""
_PROCESSES: Final = """
    arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_wait
    futex_waitv futex_wake get_robust_list getcpu getegid geteuid getgid getgroups getpgid
    getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid
    getuid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self pause pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall
    rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
    set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority
    setregid setresgid setresuid setreuid setrlimit setsid setuid sigaltstack tgkill tkill
    uretprobe vfork wait4 waitid
"""
_NETWORK: Final = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg
    recvmsg sendmmsg sendmsg sendto setsockopt shutdown
"""
_IPC: Final = """
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv
    msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget
"""
# Reading the clock's state needs no right; setting it is left to the kernel's own check.
_TIME_AND_SYSTEM: Final = """
    adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer getrandom
    gettimeofday nanosleep setitimer sysinfo time timer_create timer_delete timer_getoverrun
    timer_gettime timer_settime times uname
"""

ALLOWED: Final = tuple(
    sorted(
        name
        for group in (_FILES, _EVENTS, _MEMORY, _PROCESSES, _NETWORK, _IPC, _TIME_AND_SYSTEM)
        for name in group.split()
    )
)

# glibc and musl fall back to clone when clone3, whose flags lie behind a pointer that no
# filter can follow, does not exist. EPERM would be taken for the final answer.
ANSWERED: Final = {"clone3": errno.ENOSYS}

# From this number on (the same on every machine) the filter decides by its own table,
# not by what the installed libseccomp has heard of.
FIRST_NEW: Final = 457
ALLOWED_NEW: Final = {
    "statmount": 457,
    "listmount": 458,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "file_getattr": 468,
    "file_setattr": 469,
}

# linux/sched.h. CLONE_NEWTIME (0x80) lies in the byte that is the exit signal in clone(2).
_CLONE_NEW: Final = 0x7E020000
_CLONE_NEWTIME: Final = 0x80

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_ALL: Final = 0xFFFF_FFFF_FFFF_FFFF


class Condition(NamedTuple):
    """Allow *name* if argument *argument*, masked by *mask*, is one of *values*."""

    name: str
    argument: int
    mask: int
    values: tuple[int, ...]


# Only fifos, sockets and plain files (type 0 means plain); the mask covers S_IFMT.
_NOT_A_DEVICE: Final = (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)

CONDITIONS: Final = (
    Condition("clone", 0, _CLONE_NEW, (0,)),
    Condition("unshare", 0, _CLONE_NEW | _CLONE_NEWTIME, (0,)),
    Condition("socket", 0, _ALL, (_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK)),
    Condition("socketpair", 0, _ALL, (_AF_UNIX,)),
    # PER_LINUX, and the question which one is set.
    Condition("personality", 0, _ALL, (0, 0xFFFFFFFF)),
    Condition("mknod", 1, 0o170000, _NOT_A_DEVICE),
    Condition("mknodat", 2, 0o170000, _NOT_A_DEVICE),
)

# asm-generic/ioctls.h. TIOCSTI types into a terminal for whoever reads it next, TIOCLINUX
# does the same by selection and paste. The kernel looks at the low 32 bits only.
REFUSED_IOCTLS: Final = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C}
