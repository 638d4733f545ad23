"""Requests to the agent over its Unix socket, and their answers.

Several threads may ask at once; each request has a connection, which is used again afterwards.
An error that the agent answers with is raised as it was raised there.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from nativert.agent import faults
from nativert.errors import Code, NativertError
from nativert.fdu.known import known

_T = TypeVar("_T")
# Names the node for which a request is meant, by id or name, quoted as in a URL.
NODE: Final = "Nativert-Node"
_NDJSON: Final = "application/x-ndjson"
_KEPT: Final = 4
_CHUNK: Final = 65536
# How long an agent that has too much to do is asked again, and one that is silent waited for.
_PATIENCE_S: Final = 30.0
# An answer may take as long as what was asked for: every so often the agent is asked whether it
# still answers at all.
LOOK_S: Final = 10.0


class LostError(NativertError):
    """The connection ended before the answer."""


class GoneError(LostError):
    """No agent serves any more: nothing has been asked of it."""


def lost() -> LostError:
    """Return the error of an answer that did not come."""
    return LostError(
        "the agent went away before it had answered",
        code=Code.NO_AGENT,
        hint="nativert ps -a tells what came of it",
    )


def _silent() -> NativertError:
    return NativertError(
        f"the agent does not answer for {_PATIENCE_S:g} s",
        code=Code.TIMEOUT,
        hint="--no-agent goes without it; kill it if it does not go on",
    )


class Connection(http.client.HTTPConnection):
    """A connection to the agent that serves on *path*."""

    def __init__(self, path: Path, *, timeout_s: float | None = None) -> None:
        super().__init__("nativert")
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect to the socket, however long its path is; see unix(7)."""
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(self._timeout_s)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(directory)
        self.sock = sock

    def abort(self) -> None:
        """Break it off; any thread may call, and who waits goes on."""
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def put(self, target: str, headers: Mapping[str, str], pieces: Iterable[bytes]) -> None:
        """Send head and body of a PUT, or as much of it as is wanted before it is refused."""
        sock = self.sock
        assert sock is not None

        def taken(data: bytes) -> bool:
            # It may take its time for a piece, but not stand still.
            sock.settimeout(_PATIENCE_S)
            try:
                self.send(data)
            except TimeoutError:
                raise _silent() from None
            except OSError:
                return False  # What it has said before is there to be read.
            finally:
                sock.settimeout(None)
            return True

        self.putrequest("PUT", target)
        self.putheader("Transfer-Encoding", "chunked")
        for name, value in headers.items():
            self.putheader(name, value)
        self.endheaders()
        for piece in filter(None, pieces):
            if not _quiet(sock) or not taken(b"%x\r\n%b\r\n" % (len(piece), piece)):
                return
        taken(b"0\r\n\r\n")


class Wire:
    """The way to the agent that serves on *path*; raises OSError if none does."""

    def __init__(self, path: Path, *, node: str | None = None) -> None:
        """Have the agent pass everything on to *node*, where that is given."""
        self.path = path
        self.headers = {"Accept": _NDJSON} | ({NODE: quote(node)} if node else {})
        self._mutex = threading.Lock()
        first = Connection(path)
        first.connect()
        self._idle = [first]

    def close(self) -> None:
        """Close what is open."""
        with self._mutex:
            while self._idle:
                self._idle.pop().close()

    def ask(self, method: str, target: str, kind: type[_T], asked: object = None) -> _T:
        """Return the answer as a *kind*; an empty one is an empty object."""
        connection, response = self._request(method, target, asked)
        try:
            data = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise lost() from None
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return msgspec.json.decode(data or b"{}", type=known(kind))

    def lines(self, method: str, target: str) -> Generator[dict[str, Any], None, None]:
        """Yield the objects of an answer that has one a line."""
        rest = b""
        with closing(self.pieces(method, target)) as pieces:
            for data in pieces:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield _decoded(line)

    def pieces(self, method: str, target: str) -> Generator[bytes, None, None]:
        """Yield the bytes of an answer as they come."""
        connection, response = self._request(method, target, None)
        whole = False
        try:
            while data := self._piece(response):
                yield data
            whole = True
        finally:
            if whole:
                self._keep(connection)
            else:
                connection.close()

    @staticmethod
    def _piece(response: http.client.HTTPResponse) -> bytes:
        try:
            # Not readline: it takes a connection that breaks off for the end of the answer.
            return response.read1(_CHUNK)
        except (OSError, http.client.HTTPException):
            raise lost() from None

    def send(self, target: str, kind: type[_T], pieces: Iterable[bytes]) -> _T:
        """PUT a body whose length nobody knows yet; return the answer as a *kind*.

        Nothing of *pieces* was taken where GoneError is raised.
        """
        connection = self._connection()
        try:
            connection.put(target, self.headers, pieces)
            try:
                self._await(connection)
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException):
                raise lost() from None
        finally:
            connection.close()
        if response.status >= 400:
            raise refused(response.status, answer)
        return msgspec.json.decode(answer, type=known(kind))

    def _request(
        self, method: str, target: str, asked: object
    ) -> tuple[Connection, http.client.HTTPResponse]:
        data = None if asked is None else msgspec.json.encode(asked)
        headers = dict(self.headers)
        if data is not None:
            headers["Content-Type"] = "application/json"
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            connection = self._connection()
            try:
                connection.request(method, target, body=data, headers=headers)
                self._await(connection)
                response = connection.getresponse()
                if response.status < 400:
                    return connection, response
                answer = response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                raise lost() from None
            except BaseException:
                connection.close()
                raise
            self._keep(connection)
            error = refused(response.status, answer)
            if error.code is not Code.BUSY or time.monotonic() > give_up:
                raise error
            time.sleep(float(response.headers.get("Retry-After", "1")))

    def _await(self, connection: Connection) -> None:
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        while not poll.poll(LOOK_S * 1000):
            self.look()

    def look(self) -> None:
        """Raise NativertError TIMEOUT unless the agent answers at all."""
        if not self._answers():
            raise _silent()

    def _answers(self) -> bool:
        """Tell whether the agent answers what needs nothing but its loop."""
        other = Connection(self.path, timeout_s=_PATIENCE_S)
        try:
            other.request("GET", "/v1/version")
            other.getresponse().read()
        except TimeoutError:
            return False
        except (OSError, http.client.HTTPException):
            return True  # It ends, and with it the connection that is waited for.
        finally:
            other.close()
        return True

    def _connection(self) -> Connection:
        with self._mutex:
            if self._idle:
                connection = self._idle.pop()
                if connection.sock is not None and _quiet(connection.sock):
                    return connection
                connection.close()
        connection = Connection(self.path)
        try:
            connection.connect()
        except OSError as e:
            raise GoneError(f"no agent serves any more: {e.strerror}", code=Code.NO_AGENT) from e
        return connection

    def _keep(self, connection: Connection) -> None:
        with self._mutex:
            if connection.sock is not None and len(self._idle) < _KEPT:
                self._idle.append(connection)
                return
        connection.close()


def _quiet(sock: socket.socket) -> bool:
    """Tell whether a kept connection is still open: nothing to be read, also no end."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        decoded: dict[str, Any] = msgspec.json.decode(line)
    except msgspec.DecodeError:
        raise lost() from None
    return decoded


def refused(status: int, answer: bytes = b"") -> NativertError:
    """Return the error of an answer with a status from 400 on."""
    try:
        told = msgspec.json.decode(answer)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        code = Code.BUSY if status == 503 else Code.FAILED
        return NativertError(f"the agent answered with status {status}", code=code)
    return faults.decode(told)
