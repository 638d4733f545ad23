"""Reaching launcher and inits: start a launcher if there is none, call verbs.

Synchronous calls with deadlines over sequenced-packet sockets. Errors that a peer
reports come back as `ReportedError`; a peer that is gone as OSError or EOFError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from nativert.launcher import failpoints, protocol
from nativert.launcher.protocol import Message

if TYPE_CHECKING:
    import subprocess

_TIMEOUT_S: Final = 40.0
_START_TIMEOUT_S: Final = 15.0


class ReportedError(OSError):
    """A step that failed in launcher, init or child; errno and path where the kernel gave them."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        super().__init__(report.get("errno") or 0, report["text"], report.get("path"))
        self.step: str = report["step"]

    def __str__(self) -> str:
        where = f": {self.filename}" if self.filename else ""
        return f"{self.step}: {self.strerror}{where}"


class Channel:
    """One connection to a launcher or an init."""

    def __init__(self, directory: Path, name: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.sock.settimeout(timeout_s)
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.sock.connect(protocol.address(fd, name))
            finally:
                os.close(fd)
            # Sent together with the first verb; the answer is read before that verb's.
            protocol.send(self.sock, protocol.hello() | {"verb": "hello"})
        except BaseException:
            self.sock.close()
            raise
        self._peer: Message | None = None
        # Whether init will tell here of the end of the application that now runs.
        self.follows = False

    def peer(self) -> Message:
        """Return the peer's hello; OSError EPROTO if it speaks another protocol."""
        if self._peer is None:
            self._peer, _ = protocol.receive(self.sock)
            if "error" in self._peer:
                raise ReportedError(self._peer["error"])
            if self._peer.get("proto") != protocol.PROTO:
                raise OSError(errno.EPROTO, f"the peer speaks protocol {self._peer.get('proto')}")
        return self._peer

    def call(
        self,
        message: Message,
        fds: Sequence[int] = (),
        *,
        meanwhile: Callable[[], None] | None = None,
    ) -> tuple[Message, list[int]]:
        """Send one verb and return the answer with its descriptors.

        *meanwhile* is called while the peer is at work; what it raises ends the call.
        """
        protocol.send(self.sock, message, fds)
        if meanwhile is not None:
            meanwhile()
        self.peer()
        return self.receive()

    def receive(self, timeout_s: float | None = -1.0) -> tuple[Message, list[int]]:
        """Receive the next message; TimeoutError after *timeout_s*, None is for ever."""
        if timeout_s is None or timeout_s >= 0:
            self.sock.settimeout(timeout_s)
        message, fds = protocol.receive(self.sock)
        if "error" in message:
            raise ReportedError(message["error"])
        if message.get("event") == "end":
            self.follows = False
        return message, fds

    def quiet(self) -> bool:
        """Tell whether it can be used for another call: open, and nothing left unread.

        The end of an application that was followed is read here.
        """
        if self.sock.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        while poll.poll(0):
            try:
                if self._peer is None:
                    self.peer()
                    continue
                message, fds = protocol.receive(self.sock)
            except (OSError, EOFError, ValueError):
                return False
            for fd in fds:
                os.close(fd)
            if message.get("event") != "end":
                return False
            self.follows = False
        return True

    def kill_peer(self) -> None:
        """Kill who listens on the other side: it has not answered, and will not."""
        pid, _, _ = struct.unpack(
            "iII", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Created(NamedTuple):
    """A new init: its pid, a pidfd, and a descriptor of its network namespace or None.

    Beside it the launcher's pid, and the resource limits that applications start from.
    """

    pid: int
    pidfd: int
    network: int | None
    launcher: int
    rlimits: dict[str, tuple[int, int]]


class LauncherClient:
    """The launcher of one node, started when there is none."""

    def __init__(
        self,
        run: Path,
        *,
        tasks: Sequence[str],
        init_cgroup: str | None,
        init_tasks: Sequence[str],
        here: bool,
        place: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Take where launcher and inits belong; *place* makes that for the launcher's pid."""
        self._run = run
        self._place = place
        self._config = {
            "run": str(run),
            "tasks": list(tasks),
            "init_cgroup": init_cgroup,
            "init_tasks": list(init_tasks),
            "here": here,
            "idle_s": 5.0,
        }
        # Connections that no thread uses at the moment: answers come in the order in which
        # creations finish, so that two threads on one would get each other's.
        self._idle: list[Channel] = []

    def _take(self) -> Channel:
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _connect(self) -> Channel:
        """Return a new connection, starting the launcher if it is not there."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                channel = Channel(self._run, protocol.LAUNCHER_SOCKET)
                try:
                    channel.peer()
                except BaseException as e:
                    if isinstance(e, TimeoutError):
                        channel.kill_peer()
                    channel.close()
                    raise
            except TimeoutError:
                # It stands still. Inits go on without it, and nothing else would ever make room
                # for another one.
                deadline = time.monotonic() + _START_TIMEOUT_S
                continue
            except (FileNotFoundError, ConnectionError, EOFError):
                # None, or it left between our look and our word: each round tries both.
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "the launcher does not start") from None
                if not self._start():
                    time.sleep(0.01)
                continue
            return channel

    def _start(self) -> bool:
        import subprocess  # Only who starts a launcher needs it.

        # Executed, never forked: a client may have threads, and fork costs by its size.
        # Its imports are found as ours were, without the site machinery.
        server = "from nativert.launcher.server import main; main()"
        code = f"import sys; sys.path[:] = {sys.path!r}; {server}"
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"}
        for name in ("NATIVERT_KERNEL", failpoints.VARIABLE):
            if name in os.environ:
                environment[name] = os.environ[name]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with (
            ours,
            subprocess.Popen(
                [sys.executable, "-S", "-E", "-s", "-c", code],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=environment,
            ) as process,
        ):
            theirs.close()
            ours.settimeout(_START_TIMEOUT_S)
            try:
                message = self._say(ours, process, self._config)
                if "pid" in message:
                    # It holds the lock, and waits: no other launcher of the node can start.
                    self._place(message["pid"])
                    message = self._say(ours, process, {"placed": True})
            except BaseException:
                # The block waits for the process that we started; the launcher itself, forked
                # by it, ends when it sees ours closed.
                process.kill()
                raise
        if "error" in message:
            raise ReportedError(message["error"])
        if "foreign" in message:
            raise OSError(
                errno.EXDEV,
                f"not in the host's {message['foreign']} namespace; --here starts instances here",
            )
        return bool(message.get("ok"))

    @staticmethod
    def _say(sock: socket.socket, process: subprocess.Popen[bytes], message: Message) -> Message:
        try:
            protocol.send(sock, message)
            return protocol.receive(sock)[0]
        except (EOFError, ConnectionError):
            assert process.stderr is not None
            text = process.stderr.read().decode(errors="replace").strip()[-2000:]
            raise OSError(errno.ECHILD, f"the launcher did not start: {text}") from None

    def ready(self) -> None:
        """Have a launcher that stays until `close`: its cgroups may go when it goes."""
        for _ in range(2):
            channel = self._take()
            try:
                channel.call({"verb": "hello"})
            except (EOFError, ConnectionError, TimeoutError) as e:
                # Kept since an earlier use, and its launcher was killed or stopped meanwhile.
                if isinstance(e, TimeoutError):
                    channel.kill_peer()
                channel.close()
                self.close()
                continue
            except BaseException:
                channel.close()
                raise
            self._idle.append(channel)
            return
        raise OSError(errno.ECHILD, "the launcher does not stay")

    def create(self, sandbox: Any, *, meanwhile: Callable[[], None] | None = None) -> Created:
        """Create an init for a `plan.Sandbox`; raises ReportedError, OSError.

        *meanwhile* is called while the launcher is at work, and again should it have to be
        asked again.
        """
        message = {"verb": "create", "sandbox": sandbox._asdict()}
        for attempt in range(2):
            channel = self._take()
            try:
                answer, fds = channel.call(message, meanwhile=meanwhile)
                hello = channel.peer()
            except (EOFError, ConnectionError) as e:
                # It left, being idle, just before the call. A creation that it had begun dies
                # with the connection, so asking the next one is safe.
                channel.close()
                self.close()
                if attempt:
                    raise OSError(errno.ECHILD, f"the launcher ended during create: {e}") from e
                continue
            except TimeoutError:
                # It stands still: room is made for another one, as where it is connected to.
                channel.kill_peer()
                channel.close()
                self.close()
                if attempt:
                    raise
                continue
            except ReportedError:
                self._idle.append(channel)
                raise
            except BaseException:
                # An interrupt leaves an answer on its way: drop the connection.
                channel.close()
                raise
            self._idle.append(channel)
            network = fds[1] if len(fds) > 1 else None
            return Created(answer["pid"], fds[0], network, hello["pid"], hello["rlimits"])
        raise AssertionError

    def leave(self) -> bool:
        """Ask a running launcher without instances to end; False if it has some."""
        self.close()
        try:
            with Channel(self._run, protocol.LAUNCHER_SOCKET, timeout_s=5.0) as channel:
                try:
                    channel.call({"verb": "leave"})
                except TimeoutError:
                    channel.kill_peer()  # It stands still; inits would go on without it.
        except (FileNotFoundError, ConnectionError, EOFError):
            return True
        except ReportedError:
            return False
        return True

    def close(self) -> None:
        """Close the connections; the launcher goes on."""
        while self._idle:
            self._idle.pop().close()
