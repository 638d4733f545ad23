"""The start of the launcher, the only process that forks instances' inits.

Executed (never forked) by whoever needs it first, it leaves that process's session,
cgroup, limits and environment, opens ``launcher.sock``, and becomes a small static C
program (`init/`), which serves it: inits are copies of that one, and there is little to copy.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import socket

from nativert.isolation import chroot, credentials, syscalls
from nativert.launcher import failpoints, protocol
from nativert.launcher.failpoints import failpoint
from nativert.launcher.protocol import Message

TYPE_CHECKING = False  # typing costs a millisecond of every start
if TYPE_CHECKING:
    from typing import Final, NoReturn

LOCK: Final = "launcher.lock"
_BACKLOG: Final = 128
# Room in the arguments for the names that inits give themselves.
_NAME_ROOM: Final = " " * 40


def open_program() -> int:
    """Return a descriptor of the C program; FileNotFoundError with what to do."""
    path = os.path.join(os.path.dirname(__file__), "init", "nativert-init")
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        text = "init is not built: run scripts/setup, or install nativert with pip"
        raise FileNotFoundError(errno.ENOENT, text, path) from None


def _same_namespace(name: str) -> bool:
    try:
        return os.stat(f"/proc/self/ns/{name}").st_ino == os.stat(f"/proc/1/ns/{name}").st_ino
    except OSError:
        # A hardened PID 1 does not let itself be looked at; then nothing can be told.
        return True


def _leave_surroundings(config: Message) -> dict[str, tuple[int, int]]:
    """Put off what the starter happened to have; return the limits for applications."""
    os.chdir("/")
    os.umask(0o022)
    for number in signal.valid_signals():
        # A shell's background job ignores SIGINT, and what is ignored stays so over exec.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    # A real-time task may not enter a cgroup that has no real-time budget (sched(7)).
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    for path in config["tasks"]:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    try:
        credentials.set_oom_score_adj(0)
    except PermissionError:
        pass  # Lowering needs CAP_SYS_RESOURCE; each application sets its own anyway.
    try:
        syscalls.join_session_keyring()
    except OSError:
        pass  # A kernel without keys has none to inherit.
    rlimits = credentials.current_rlimits()
    hard = rlimits["nofile"][1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return rlimits


def _listen(run: int) -> int:
    try:
        os.unlink(protocol.LAUNCHER_SOCKET, dir_fd=run)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o177)
    listener.bind(protocol.address(run, protocol.LAUNCHER_SOCKET))
    os.umask(mask)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener.detach()


class Handover:
    """What the C program is told, with the descriptors that it takes over."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def give(self, fd: int) -> int:
        """Hand *fd* over; return it as what it is found by."""
        self._fds.append(fd)
        return fd

    def execute(self, program: int, config: Message) -> NoReturn:
        """Become *program*, with *config* to read."""
        memfd = os.memfd_create("launcher")
        os.write(memfd, json.dumps(config).encode())
        os.set_inheritable(memfd, True)
        for fd in self._fds:
            os.set_inheritable(fd, True)
        os.execve(program, ["nativert-launcher", str(memfd), _NAME_ROOM], {})  # noqa: S606


def _become_server(config: Message, lock: int, starter: socket.socket) -> NoReturn:
    rlimits = _leave_surroundings(config)
    program = open_program()
    run = os.open(config["run"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    into = config.get("init_cgroup")
    handover = Handover()
    hello = protocol.hello()
    told = {
        "version": hello["version"],
        "boot_id": hello["boot_id"],
        "last_capability": credentials.last_capability(),
        "rlimits": json.dumps(rlimits),
        "failpoints": os.environ.get(failpoints.VARIABLE, ""),
        # Linux 5.12; older kernels have each mount of a tree remounted.
        "mount_setattr": syscalls.KERNEL >= (5, 12),
        "idle_ms": int(float(config["idle_s"]) * 1000),
        "run": handover.give(run),
        "lock": handover.give(lock),
        "starter": handover.give(starter.fileno()),
        "init_cgroup": handover.give(os.open(into, os.O_RDONLY | os.O_CLOEXEC)) if into else None,
        "init_tasks": [
            handover.give(os.open(tasks, os.O_WRONLY | os.O_CLOEXEC))
            for tasks in config["init_tasks"]
        ],
        "listener": handover.give(_listen(run)),
    }
    failpoint("launcher.listening")
    null = os.open("/dev/null", os.O_RDWR)
    errors = os.open(f"{config['run']}/launcher.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(errors, 2)
    handover.execute(program, told)


def main() -> None:
    """Read the configuration from the socket at standard input, detach, become the server."""
    starter = socket.socket(fileno=os.dup(0))
    config, _ = protocol.receive(starter)
    lock = os.open(f"{config['run']}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        protocol.send(starter, {"busy": True})
        return
    failpoint("launcher.locked")
    if not config["here"]:
        for name in ("mnt", "net"):
            if not _same_namespace(name):
                protocol.send(starter, {"foreign": name})
                return
    # The starter has made a new session; leaving its leader means that no terminal can
    # ever be acquired, and that the starter's wait ends at once.
    if os.fork():
        os._exit(0)
    try:
        failpoint("launcher.detached")
        credentials.become_subreaper()
        credentials.name_process("nativert-launcher")
        # All of them, for good: inits inherit the mask and read signals from descriptors.
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        credentials.give_up_powers()
        if chroot.chrooted():
            chroot.make_root()
        # Where it is to go may have to be made around it.
        protocol.send(starter, {"pid": os.getpid()})
        protocol.receive(starter)
        failpoint("launcher.placed")
        # From there the starter is told that all is well.
        _become_server(config, lock, starter)
    except OSError as e:
        protocol.send(starter, protocol.error_message("launcher", e))
    except EOFError:
        pass  # The starter could not make the place, and tells why.


if __name__ == "__main__":
    main()
