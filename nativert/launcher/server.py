"""The launcher: the only process that forks instances' inits.

Executed (never forked) by whoever needs it first, it leaves that process's session,
cgroup, limits and environment, then serves ``launcher.sock``: one verb, create, that
answers with init's pid, its pidfd and the network namespace. It is the inits' parent
and subreaper and may die at any time: inits go on at their own sockets. Without
instances and clients it leaves after some seconds. One thread, one poll loop.
"""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import signal
import socket
import sys
import time

from nativert.isolation import chroot, credentials, namespaces, process, syscalls
from nativert.launcher import create, protocol
from nativert.launcher.failpoints import failpoint
from nativert.launcher.loop import Loop, drain
from nativert.launcher.protocol import Message

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Final, NoReturn

LOCK: Final = "launcher.lock"
# An init that has not answered by then is killed: a hung mount must not hold its caller.
_CREATE_TIMEOUT_S: Final = 30.0
# Root alone may connect; this is against a client that goes wrong.
_MAX_CLIENTS: Final = 1024
_KILL_TIMEOUT_S: Final = 1.0


class Pending:
    """A creation that waits for init's word."""

    def __init__(
        self, client: socket.socket, control: socket.socket, pid: int, pidfd: int, network: int
    ) -> None:
        self.client = client
        self.control = control
        self.pid = pid
        self.pidfd = pidfd
        self.network = network
        self.deadline = time.monotonic() + _CREATE_TIMEOUT_S

    def close(self) -> None:
        """Close what the creation held."""
        self.control.close()
        os.close(self.pidfd)
        if self.network >= 0:
            os.close(self.network)


class Launcher:
    """The state of the launcher and its poll loop."""

    def __init__(self, config: Message, rlimits: dict[str, tuple[int, int]]) -> None:
        self._idle_s = float(config["idle_s"])
        self._hello = protocol.hello() | {"rlimits": rlimits}
        # Held for life: what is installed meanwhile is for the next launcher.
        self._program = create.open_program()
        into = config.get("init_cgroup")
        self._init_cgroup = os.open(into, os.O_RDONLY | os.O_CLOEXEC) if into else None
        self._init_tasks = [os.open(t, os.O_WRONLY | os.O_CLOEXEC) for t in config["init_tasks"]]
        self._clients: dict[int, socket.socket] = {}
        self._pending: dict[int, Pending] = {}
        self._children: set[int] = set()
        self._loop = Loop()
        self._signals = syscalls.signalfd(frozenset({signal.SIGCHLD}))
        self._loop.watch(self._signals, self._reap)
        self._run = os.open(config["run"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.unlink(protocol.LAUNCHER_SOCKET, dir_fd=self._run)
        except FileNotFoundError:
            pass
        mask = os.umask(0o177)
        self._listener.bind(protocol.address(self._run, protocol.LAUNCHER_SOCKET))
        os.umask(mask)
        self._listener.listen(128)
        self._loop.watch(self._listener.fileno(), self._accept)

    def loop(self) -> None:
        """Serve until there has been nothing to do for a while."""
        while True:
            busy = bool(self._clients or self._children)
            timeout_s = 1.0 if self._pending else None if busy else self._idle_s
            turned = self._loop.turn(None if timeout_s is None else timeout_s * 1000)
            if not turned and not busy:
                # Unlinked before the listener closes: who finds no socket starts another.
                os.unlink(protocol.LAUNCHER_SOCKET, dir_fd=self._run)
                return
            self._expire()

    def _expire(self) -> None:
        now = time.monotonic()
        for fd, pending in list(self._pending.items()):
            if pending.deadline < now:
                late = TimeoutError(110, f"init has not answered for {_CREATE_TIMEOUT_S:.0f} s")
                self._finish(fd, pending, protocol.error_message("init", late))

    def _reap(self) -> None:
        drain(self._signals)
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._children.clear()
                return
            if pid == 0:
                return
            self._children.discard(pid)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # No descriptor is left: whoever waits is served later.
        if len(self._clients) >= _MAX_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._clients[client.fileno()] = client
        self._loop.watch(client.fileno(), lambda: self._receive(client))

    def _drop(self, client: socket.socket) -> None:
        fd = client.fileno()
        if fd < 0:
            return
        self._loop.unwatch(fd)
        self._clients.pop(fd, None)
        client.close()
        for control, pending in list(self._pending.items()):
            if pending.client is client:
                # Nobody will own what was asked for.
                self._finish(control, pending, None)

    def _answer(self, client: socket.socket, message: Message, *fds: int) -> bool:
        if client.fileno() < 0:
            return False
        try:
            protocol.send(client, message, fds)
        except OSError:
            # Gone, or it does not read: the launcher waits for nobody.
            self._drop(client)
            return False
        return True

    def _receive(self, client: socket.socket) -> None:
        try:
            message, fds = protocol.receive(client)
        except BlockingIOError:
            return
        except (EOFError, OSError, ValueError):
            self._drop(client)
            return
        for fd in fds:
            os.close(fd)
        verb = message.get("verb")
        try:
            if verb == "create":
                self._create(client, message["sandbox"])
            elif verb == "hello":
                self._answer(client, self._hello)
            elif verb == "leave":
                self._leave(client)
            else:
                raise ValueError(f"unknown verb {verb!r}")
        except Exception as e:  # noqa: BLE001 - no message ends the launcher
            self._answer(client, protocol.error_message(f"{verb}", e))

    def _leave(self, client: socket.socket) -> None:
        if self._children:
            raise BlockingIOError(16, f"{len(self._children)} instances are alive")
        os.unlink(protocol.LAUNCHER_SOCKET, dir_fd=self._run)
        self._answer(client, {"ok": True})
        sys.exit(0)

    # -- creation ----------------------------------------------------------------------

    def _create(self, client: socket.socket, sandbox: Message) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid, pidfd = syscalls.clone3(
                syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS, cgroup=self._init_cgroup
            )
        except BaseException:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            self._become_init(sandbox, theirs)
        theirs.close()
        ours.settimeout(5.0)
        pending = Pending(client, ours, pid, pidfd, -1)
        self._children.add(pid)
        self._pending[ours.fileno()] = pending
        try:
            failpoint("launcher.cloned")
            # While init builds its root on another cpu.
            held = namespaces.create(
                sandbox["id_base"], sandbox["id_count"], network=sandbox["network"], reap=False
            )
        except Exception as e:  # noqa: BLE001 - whatever it was, the creation ends
            self._finish(ours.fileno(), pending, protocol.error_message("namespaces", e))
            return
        pending.network = held.get("net", -1)
        try:
            protocol.send(ours, {"namespaces": list(held)}, list(held.values()))
        except OSError:
            pass  # Init has ended; what it said is read below.
        finally:
            for name, fd in held.items():
                if name != "net":
                    os.close(fd)
        self._loop.watch(ours.fileno(), lambda: self._init_answers(pending))

    def _init_answers(self, pending: Pending) -> None:
        fd = pending.control.fileno()
        try:
            message, _ = protocol.receive(pending.control)
            failpoint("launcher.built")
        except (EOFError, OSError, ValueError) as e:
            message = protocol.error_message("init", OSError(3, f"init ended without a word: {e}"))
        self._finish(fd, pending, message)

    def _finish(self, fd: int, pending: Pending, message: Message | None) -> None:
        self._loop.unwatch(fd)
        del self._pending[fd]
        owned = False
        if message is not None and "error" not in message:
            fds = [pending.pidfd] + ([pending.network] if pending.network >= 0 else [])
            owned = self._answer(pending.client, {"ok": True, "pid": pending.pid}, *fds)
            failpoint("launcher.answered")
        if not owned:
            try:
                signal.pidfd_send_signal(pending.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            # Not for ever: one whose mount hangs in the kernel must not hold all the others.
            process.wait_end(pending.pidfd, _KILL_TIMEOUT_S)
            self._reap()
            if message is not None:
                self._answer(pending.client, message)
        pending.close()

    def _become_init(self, sandbox: Message, control: socket.socket) -> NoReturn:
        # Python objects that own descriptors must not close them again by number later.
        fd = control.detach()
        for client in self._clients.values():
            client.detach()
        for pending in self._pending.values():
            pending.control.detach()
        self._listener.detach()
        try:
            # Where there is no cgroup2 to be born into.
            for tasks in self._init_tasks:
                os.write(tasks, b"0")
            create.place(fd, self._program)
            ours = socket.socket(fileno=create.CONTROL_FD)
            create.main(sandbox, ours)
        except BaseException as e:  # noqa: BLE001 - a fork must never come back as a second launcher
            with socket.socket(fileno=fd) as ours:
                protocol.send(ours, protocol.error_message("init", e))
        finally:
            os._exit(1)


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


def main() -> None:
    """Read the configuration from the socket at standard input, detach, say ready, serve."""
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
        rlimits = _leave_surroundings(config)
        launcher = Launcher(config, rlimits)
        failpoint("launcher.listening")
    except OSError as e:
        protocol.send(starter, protocol.error_message("launcher", e))
        return
    except EOFError:
        return  # The starter could not make the place, and tells why.
    protocol.send(starter, {"ok": True})
    starter.close()
    null = os.open("/dev/null", os.O_RDWR)
    errors = os.open(f"{config['run']}/launcher.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(errors, 2)
    os.close(null)
    os.close(errors)
    # What is there now is shared by every init for life: the collector must not touch it.
    gc.collect()
    gc.freeze()
    gc.disable()
    launcher.loop()


if __name__ == "__main__":
    main()
