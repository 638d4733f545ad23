"""A program inside an instance of another node, its streams over a WebSocket of the own agent."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from threading import Thread
from typing import Final

import msgspec

from nativert.agent import faults
from nativert.agent.websocket import WebSocket
from nativert.agent.wire import LOOK_S, Wire, lost
from nativert.errors import Code, NativertError

_CHUNK: Final = 65536


class RemoteSession:
    """As `runtime.execute.ExecSession`; `master` is a socket in front of its terminal.

    From construction on the program runs. NativertError as of a session here, NO_AGENT when an
    agent goes away.
    """

    def __init__(
        self, wire: Wire, target: str, program: Mapping[str, object], stdio: tuple[int, int, int]
    ) -> None:
        self.master: int | None = None
        self._wire = wire
        self._size: tuple[int, int] | None = None
        self._closing = False
        with ExitStack() as opening:
            try:
                self._socket = WebSocket(wire.path, target, wire.headers)
                opening.callback(self._socket.close)
                self._socket.send(_text(program))
            except OSError:
                raise lost() from None
            self._told(self._next())
            if program["tty"]:
                ours, theirs = socket.socketpair()
                opening.callback(theirs.close)
                self.master = ours.detach()
                stdio = (theirs.fileno(),) * 3
            # Copies: the caller closes its own once they are the program's.
            self._stdio = [os.dup(fd) for fd in stdio]
            for fd in self._stdio:
                opening.callback(os.close, fd)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            opening.callback(os.close, self._wake)
            self._typing = Thread(target=self._type, name="session-stdin", daemon=True)
            self._typing.start()
            self._held = opening.pop_all()

    def wait(self) -> int:
        """Show what the program writes until its end; return its exit code, 128+n on signal n."""
        try:
            while True:
                message = self._next()
                if isinstance(message, str):
                    code = self._told(message)
                    if code is not None:
                        return code
                else:
                    _write(self._stdio[message[0]], message[1:])
        except BrokenPipeError:
            # Nobody reads it: as for a program that writes into a pipe itself.
            return 128 + signal.SIGPIPE

    def _next(self) -> str | bytes:
        """Return the next message; it may take as long as the agent says nothing and answers."""
        while True:
            try:
                message = self._socket.receive(LOOK_S)
            except TimeoutError:
                self._wire.look()
                continue
            if not message:
                raise lost()
            return message

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""
        # By the thread: a signal handler may come in the middle of a message.
        self._size = rows, columns
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Give the session up: what still runs of it is killed."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._socket.abort()
        self._typing.join()
        self._held.close()
        if self.master is not None:
            os.close(self.master)
            self.master = None

    @staticmethod
    def _told(message: str | bytes) -> int | None:
        """Return the exit code, None where it has begun; raises the error that is told."""
        match msgspec.json.decode(message):
            case {"started": True}:
                return None
            case {"exit_code": int(code)}:
                return code
            case {"error": error}:
                raise faults.decode(error)
        raise lost()

    def _type(self) -> None:
        """Send what comes on stdin, and the size of the terminal."""
        stdin = self._stdio[0]
        poll = select.poll()
        poll.register(stdin, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        with suppress(OSError):
            while True:
                ready = dict(poll.poll())
                if self._closing:
                    return
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                    self._socket.send(_text({"resize": self._size}))
                elif data := _read(stdin):
                    self._socket.send(data)
                else:
                    poll.unregister(stdin)
                    self._socket.send(_text({"eof": True}))


def _text(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError as e:
        raise NativertError(
            f"{e.object!r}: not UTF-8, and goes to no other node", code=Code.USAGE
        ) from None


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        return b""  # A directory, or a terminal that was hung up.


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            # Whoever shares it with us has made it so.
            select.select([], [fd], [])
