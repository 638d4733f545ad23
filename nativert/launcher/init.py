"""init: PID 1 of one instance, from configure to clean.

It is host root, outside the instance's cgroup and user namespace, and holds the other
namespaces alive. It starts the application and sessions (`child`), reaps, relays the
log, and tells the end in exit.json and to whoever follows. It serves its own socket
and goes on whatever becomes of launcher, CLI or agent. One thread, one poll loop.
Everything that it needs is imported before its root changes.
"""

from __future__ import annotations

import os
import signal
import socket
import struct

from nativert.isolation import credentials, namespaces, rootfs, syscalls
from nativert.launcher import child, protocol
from nativert.launcher.application import Application, Evidence
from nativert.launcher.log import Log
from nativert.launcher.loop import Loop, drain
from nativert.launcher.plan import Program, Sandbox
from nativert.launcher.protocol import Message
from nativert.launcher.session import Connection, Session, read_report, standard_streams

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

# Sessions are refused long before connections, so that stop and release always get in.
_MAX_SESSIONS: Final = 64
_MAX_CONNECTIONS: Final = 512
# How long a piece of a line waits for its end before it is logged as it is.
_PARTIAL_MS: Final = 200


class Init:
    """The state of one init and its poll loop."""

    def __init__(self, plan: Any) -> None:
        self._plan = plan
        self._hello = protocol.hello()
        self._directory = os.open(plan.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        log = plan.log
        log_directory = os.open(log["directory"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._log = Log(log_directory, log["max_bytes"], log["files"])
        self._evidence = Evidence(plan.cgroup)
        self._around: child.Surroundings | None = None
        self._application: Application | None = None
        # The last run's end, for who asks when exit.json could not be written or read.
        self._last: Message | None = None
        self._starter: Connection | None = None
        self._connections: list[Connection] = []
        self._sessions: dict[int, Session] = {}
        self._loop = Loop()
        self._signals = syscalls.signalfd(frozenset({signal.SIGCHLD}))
        self._loop.watch(self._signals, self._reap)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(protocol.address(self._directory, protocol.INIT_SOCKET))
        self._listener.listen(_MAX_CONNECTIONS)
        self._listener.setblocking(False)
        self._loop.watch(self._listener.fileno(), self._accept)

    # -- set-up ------------------------------------------------------------------------

    def surround(self, user: int) -> None:
        """Open what every program of the instance is started into."""
        cgroup = self._plan.cgroup
        with open(self._plan.seccomp, "rb") as file:
            program = syscalls.Filter(file.read())
        into = cgroup.get("into")
        self._around = child.Surroundings(
            tasks=[os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in cgroup["tasks"]],
            into=os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if into else None,
            user=user,
            id_base=self._plan.id_base,
            seccomp=program,
            last_capability=credentials.last_capability(),
        )

    # -- the loop ----------------------------------------------------------------------

    def loop(self) -> NoReturn:
        """Serve until released."""
        while True:
            pipes = self._application.pipes if self._application else []
            waiting = any(pipe.pending for pipe in pipes)
            if not self._loop.turn(_PARTIAL_MS if waiting else None):
                for pipe in pipes:
                    pipe.flush()

    # -- processes ---------------------------------------------------------------------

    def _reap(self) -> None:
        drain(self._signals)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._all_gone()
                return
            if pid == 0:
                break
            self._reaped(pid, status)
        if self._application is not None and self._application.state == "ending":
            # What a child of the application forked meanwhile dies with it.
            self._kill_all()

    def _reaped(self, pid: int, status: int) -> None:
        application = self._application
        if application is not None and pid == application.pid:
            application.reaped(status)
            if application.state == "starting":
                self._application_report()
            return
        session = self._sessions.pop(pid, None)
        if session is not None:
            self._session_report(session)
            self._session_ended(session, status)

    def _all_gone(self) -> None:
        application = self._application
        if application is None or not application.main_ended:
            return
        if application.state == "starting":
            return
        for pipe in application.pipes:
            self._loop.unwatch(pipe.fd)
        self._application = None
        self._last = application.finish(self._directory, self._hello["boot_id"])
        self._tell_end()

    def _tell_end(self) -> None:
        for connection in list(self._connections):
            if connection.follows:
                connection.follows = False
                self._send(connection, {"event": "end", "end": self._last})

    @staticmethod
    def _kill_all(number: int = signal.SIGKILL) -> None:
        # From PID 1 of a PID namespace, -1 means everybody in it except oneself: children
        # that double-forked, and those that are born while the signal is sent, included.
        try:
            os.kill(-1, number)
        except ProcessLookupError:
            pass

    # -- connections -------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # It has gone already, or there is no descriptor left.
        credentials_ = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("iII", credentials_)
        sock.setblocking(False)
        if uid != 0 or len(self._connections) >= _MAX_CONNECTIONS:
            full = BlockingIOError(11, f"{len(self._connections)} clients are connected")
            try:
                protocol.send(sock, protocol.error_message("connect", full))
            except OSError:
                pass  # It has gone already.
            sock.close()
            return
        connection = Connection(sock)
        self._connections.append(connection)
        self._loop.watch(sock.fileno(), lambda: self._receive(connection))

    def _drop(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._loop.unwatch(connection.sock.fileno())
        connection.sock.close()
        if connection is self._starter:
            self._starter = None
        if connection.session is not None:
            # Nobody is left to hear its end.
            connection.session.hang_up()

    def _send(self, connection: Connection, message: Message, *fds: int) -> None:
        try:
            protocol.send(connection.sock, message, fds)
        except OSError:
            # Gone, or it does not read: init waits for nobody.
            self._drop(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            message, fds = protocol.receive(connection.sock)
        except BlockingIOError:
            return
        except (EOFError, OSError, ValueError):
            self._drop(connection)
            return
        verb = message.get("verb")
        try:
            if verb == "run":
                self._run(connection, message)
            elif verb in ("exec", "script"):
                self._exec(connection, message, fds)
            elif verb == "signal":
                self._signal(connection, message)
            elif verb == "status":
                application = self._application
                connection.follows = bool(message.get("follow")) and application is not None
                fds_out = (application.pidfd,) if application and message.get("pidfd") else ()
                self._send(connection, self._status(), *fds_out)
            elif verb == "release":
                self._release(connection)
            elif verb == "hello":
                self._send(connection, self._hello)
            else:
                raise ValueError(f"unknown verb {verb!r}")
        except Exception as e:  # noqa: BLE001 - no message ends the instance
            self._send(connection, protocol.error_message(f"{verb}", e))
        finally:
            for fd in fds:
                os.close(fd)

    # -- verbs -------------------------------------------------------------------------

    def _status(self) -> Message:
        lost = {"lost_log_bytes": self._log.lost_bytes}
        if self._application is None:
            return lost | {"state": "idle", "end": self._last}
        return lost | self._application.status()

    def _run(self, connection: Connection, message: Message) -> None:
        if self._application is not None:
            raise BlockingIOError(16, "the application runs already")
        assert self._around is not None
        program = Program(**message["program"])
        try:
            os.unlink(protocol.EXIT_FILE, dir_fd=self._directory)
        except FileNotFoundError:
            pass
        application = Application(message["run"], program, self._around, self._log, self._evidence)
        self._application = application
        self._starter = connection
        connection.follows = bool(message.get("follow"))
        self._loop.watch(application.report, self._application_report)
        for pipe in application.pipes:
            self._loop.watch(pipe.fd, lambda pipe=pipe: self._relay(pipe))  # type: ignore[misc]

    def _relay(self, pipe: Any) -> None:
        if not pipe.relay():
            self._loop.unwatch(pipe.fd)

    def _application_report(self) -> None:
        application = self._application
        if application is None or application.state != "starting":
            return
        report = read_report(application.report)
        if report is None:
            return
        self._loop.unwatch(application.report)
        os.close(application.report)
        starter, self._starter = self._starter, None
        if report:
            # It never was the application: the child goes, the run did not happen.
            for pipe in application.pipes:
                self._loop.unwatch(pipe.fd)
                pipe.close()
            if not application.main_ended:
                # Its like in the instance may have stopped it before it could exit.
                signal.pidfd_send_signal(application.pidfd, signal.SIGKILL)
                os.waitpid(application.pid, 0)
            os.close(application.pidfd)
            self._application = None
            self._last = application.never(report["error"], self._hello["boot_id"])
            if starter is not None:
                starter.follows = False
                self._send(starter, report)
            self._tell_end()
            return
        application.state = "ending" if application.main_ended else "running"
        if starter is not None:
            self._send(starter, {"ok": True} | self._status(), application.pidfd)

    def _exec(self, connection: Connection, message: Message, fds: list[int]) -> None:
        if connection.session is not None:
            raise ValueError("this connection has a session already")
        if len(self._sessions) >= _MAX_SESSIONS:
            raise BlockingIOError(11, f"{_MAX_SESSIONS} sessions run already")
        assert self._around is not None
        program = Program(**message["program"])
        with standard_streams(message, fds) as (stdio, master):
            started = child.start(program, self._around, stdio, terminal=master is not None)
            session = Session(connection, *started)
            self._sessions[session.pid] = session
            connection.session = session
            self._loop.watch(session.report, lambda: self._session_report(session))
            if master is not None:
                self._send(connection, {"terminal": True}, master)

    def _session_report(self, session: Session) -> None:
        report = None if session.started else read_report(session.report)
        if report is None:
            return
        session.started = True
        self._loop.unwatch(session.report)
        os.close(session.report)
        if report:
            session.failed = True
            self._send(session.connection, report)
        else:
            self._send(session.connection, {"ok": True, "pid": session.pid})

    def _session_ended(self, session: Session, status: int) -> None:
        session.connection.session = None
        os.close(session.pidfd)
        if not session.failed:
            code = os.waitstatus_to_exitcode(status)
            self._send(session.connection, {"event": "exit", "code": code})

    def _signal(self, connection: Connection, message: Message) -> None:
        number = int(message["signal"])
        if message.get("all"):
            self._kill_all(number)
        elif self._application is None or self._application.main_ended:
            raise ProcessLookupError(3, "the application does not run")
        else:
            signal.pidfd_send_signal(self._application.pidfd, number)
        self._send(connection, {"ok": True})

    def _release(self, connection: Connection) -> None:
        self._kill_all()
        self._send(connection, {"ok": True})
        # The kernel kills and reaps what is left of the PID namespace before this ends.
        os._exit(0)


def main(plan: Message, control: socket.socket) -> NoReturn:
    """Become the init of *plan*: called in the fork, in new PID and mount namespaces."""
    step = "init"
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        os.setsid()
        sandbox = Sandbox(**plan)
        credentials.hide_from_instance()
        credentials.name_process(f"nativert-init {sandbox.instance[:8]}")
        init = Init(sandbox)
        step = "root file system"
        rootfs.make_private()
        new_root = f"{sandbox.directory}/root"
        root = rootfs.build(
            new_root, [rootfs.Step(*s) for s in sandbox.root], shm_bytes=sandbox.shm_bytes
        )
        step = "namespaces"
        message, fds = protocol.receive(control)
        held = dict(zip(message["namespaces"], fds, strict=True))
        namespaces.join(held)
        step = "hostname"
        socket.sethostname(sandbox.hostname)
        if sandbox.network:
            step = "network namespace"
            namespaces.loopback_up()
            namespaces.allow_unprivileged_network(sandbox.id_base, sandbox.id_count)
        step = "cgroup"
        init.surround(held["user"])
        step = "root file system"
        rootfs.finish(new_root, root, own_network=sandbox.network)
        for name, fd in held.items():
            if name != "user":
                os.close(fd)
        protocol.send(control, {"ok": True})
        control.close()
        init.loop()
    except BaseException as e:  # noqa: BLE001 - the launcher is told, and init ends here
        try:
            protocol.send(control, protocol.error_message(step, e))
        except OSError:
            pass
    finally:
        os._exit(1)
