"""A node reached through its agent: the same questions and operations as `runtime.Node`.

Several threads may call at once; each request has a connection, which is used again afterwards.
An error that the agent answers with is raised as it was raised there.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from nativert.agent import faults
from nativert.errors import Code, NativertError
from nativert.fdu import descriptor as descriptors
from nativert.fdu.descriptor import Descriptor
from nativert.runtime.facade import Facade, Session
from nativert.runtime.protocols import Progress
from nativert.runtime.views import Check, Event, Figures, Instance, Leftover, LogLine

_T = TypeVar("_T")
_Rows = list[Instance]
_NDJSON: Final = "application/x-ndjson"
_KEPT: Final = 4
_CHUNK: Final = 65536
# How long an agent that has too much to do is asked again.
_PATIENCE_S: Final = 30.0


class LostError(NativertError):
    """The connection ended before the answer."""


class _Nothing(msgspec.Struct):
    pass


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("nativert")
        self._path = path

    def connect(self) -> None:
        """Connect to the socket, however long its path is; see unix(7)."""
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(directory)
        self.sock = sock


class Client:
    """The agent that serves on *path*; raises OSError if none does.

    *direct* opens the node without it, for what passes descriptors.
    """

    def __init__(self, path: Path, *, direct: Callable[[], Facade]) -> None:
        self._path = path
        self._direct = direct
        self._mutex = threading.Lock()
        first = _Connection(path)
        first.connect()
        self._idle = [first]

    def close(self) -> None:
        """Close what is open; instances and agent go on."""
        with self._mutex:
            while self._idle:
                self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- operations --------------------------------------------------------------------

    def define(self, descriptor: Descriptor, *, name: str | None = None) -> Instance:
        """Enter an instance of *descriptor*."""
        asked = {"descriptor": msgspec.Raw(descriptors.encode(descriptor)), "name": name}
        return self._ask("POST", "/v1/instances", Instance, asked)

    def configure(self, ref: str, *, progress: Progress | None = None) -> Instance:
        """Fetch the image; make cgroups, namespaces, root file system, network."""
        answer: Instance | NativertError = self._lost()
        for line in self._lines("POST", f"{_one(ref)}/configure"):
            match line:
                case {"progress": {"received": received, "total": total}}:
                    if progress is not None:
                        progress(received, total)
                case {"result": row}:
                    answer = msgspec.convert(row, Instance)
                case {"error": error}:
                    answer = faults.decode(error)
        if isinstance(answer, NativertError):
            raise answer
        return answer

    def clean(self, ref: str) -> Instance:
        """Remove all that configure made."""
        return self._ask("POST", f"{_one(ref)}/clean", Instance)

    def run(self, ref: str, *, env: Mapping[str, str] | None = None) -> Instance:
        """Start the application; *env* is added to the descriptor's."""
        return self._ask("POST", f"{_one(ref)}/start", Instance, {"env": dict(env or {})})

    def stop(self, ref: str) -> Instance:
        """Send the stop signal, wait for the grace, kill what is left."""
        return self._ask("POST", f"{_one(ref)}/stop", Instance)

    def restart(self, ref: str) -> Instance:
        """Stop and start, with the environment of the last start."""
        return self._ask("POST", f"{_one(ref)}/restart", Instance)

    def pause(self, ref: str) -> Instance:
        """Freeze the application."""
        return self._ask("POST", f"{_one(ref)}/pause", Instance)

    def resume(self, ref: str) -> Instance:
        """Thaw the application."""
        return self._ask("POST", f"{_one(ref)}/resume", Instance)

    def scale(self, ref: str, change: Mapping[str, object], *, force: bool = False) -> Instance:
        """Change limits of the running application; keys are the fields of `Limits`."""
        asked = {"limits": dict(change), "force": force}
        return self._ask("POST", f"{_one(ref)}/scale", Instance, asked)

    def undefine(self, ref: str) -> None:
        """Forget the instance: nothing of it is left."""
        self._ask("POST", f"{_one(ref)}/undefine", _Nothing)

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Take the edges down to UNDEFINED; with *force* a running application is killed."""
        self._ask("DELETE", _one(ref) + ("?force=true" if force else ""), _Nothing)

    def kill(self, ref: str, number: int) -> None:
        """Send a signal to the application's first process."""
        self._ask("POST", f"{_one(ref)}/kill", _Nothing, {"signal": int(number)})

    def wait(self, ref: str, *, timeout_s: float | None = None) -> Instance:
        """Wait until the application has ended; NativertError(TIMEOUT).

        A wait goes on when the agent ends: with the next one, or without.
        """
        left_s, began = timeout_s, time.monotonic()
        while True:
            try:
                return self._ask("POST", f"{_one(ref)}/wait", Instance, {"timeout_s": left_s})
            except LostError:
                if timeout_s is not None:
                    left_s = max(0.0, timeout_s - (time.monotonic() - began))
                if not self._serves():
                    with self._direct() as node:
                        return node.wait(ref, timeout_s=left_s)

    def exec(
        self,
        ref: str,
        argv: Sequence[str],
        *,
        stdio: tuple[int, int, int],
        tty: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Session:
        """Start a program beside the application, in its namespaces, cgroup and privileges.

        By the instance's init itself, which gets the descriptors: no byte goes through the agent,
        and the session outlives it.
        """
        with self._direct() as node:
            return node.exec(ref, argv, stdio=stdio, tty=tty, env=env)

    def logs(self, ref: str, *, follow: bool = False, tail: int | None = None) -> Iterator[LogLine]:
        """Yield the log of the instance's runs; with *follow* until the application ends.

        It goes on where it was when the agent ends, or has dropped a reader that was too slow.
        """
        place = _Place()
        while True:
            asked = {"follow": "true"} if follow else {}
            if tail is not None and not place.known:
                asked["tail"] = str(tail)
            lines = self._lines("GET", f"{_one(ref)}/logs?{urlencode(asked)}")
            try:
                yield from place.beyond(msgspec.convert(line, LogLine) for line in lines)
                return
            except LostError:
                if not follow:
                    raise
            if not self._serves():
                with self._direct() as node:
                    again = None if place.known else tail
                    yield from place.beyond(node.logs(ref, follow=True, tail=again))
                return

    # -- questions ---------------------------------------------------------------------

    def get(self, ref: str) -> Instance:
        """Return one instance."""
        return self._ask("GET", _one(ref), Instance)

    def stats(self, refs: Sequence[str] | None = None) -> list[Figures]:
        """Return the figures of the given instances, or of all that run."""
        if refs:
            return [self._ask("GET", f"{_one(ref)}/stats", Figures) for ref in refs]
        return self._ask("GET", "/v1/stats", list[Figures])

    def inspect(self, ref: str) -> dict[str, object]:
        """Return the fog05 record with the true status, and a ``native`` object beside it."""
        return self._ask("GET", f"{_one(ref)}/inspect", dict[str, object])

    def events(self, after: int = 0, *, limit: int = 1000) -> Sequence[Event]:
        """Return at most *limit* events with numbers above *after*, oldest first."""
        lines = self._lines("GET", f"/v1/events?after={after}&limit={limit}")
        return [msgspec.convert(line, Event) for line in lines]

    def wait_events(self, after: int, timeout_s: float, *, limit: int = 1000) -> Sequence[Event]:
        """Return events above *after*, as soon as there are some; none after *timeout_s*."""
        target = f"/v1/events?after={after}&limit={limit}&wait={timeout_s}"
        return [msgspec.convert(line, Event) for line in self._lines("GET", target)]

    def latest_event(self) -> int:
        """Return the number of the newest event: from here on, only new ones come."""
        return self._ask("GET", "/v1/events/latest", dict[str, int])["seq"]

    def version(self) -> dict[str, str | int]:
        """Return who serves: versions, node, pid."""
        return self._ask("GET", "/v1/version", dict[str, str | int])

    def gc(self, *, dry_run: bool = False) -> list[Leftover]:
        """Remove what carries this node's tag and belongs to no instance."""
        return self._ask("POST", "/v1/gc", list[Leftover], {"dry_run": dry_run})

    def doctor(self) -> list[Check]:
        """Return what this host can and cannot enforce, with the fix for each."""
        return self._ask("GET", "/v1/doctor", list[Check])

    # -- requests ----------------------------------------------------------------------

    def _ask(self, method: str, target: str, kind: type[_T], asked: object = None) -> _T:
        """Return the answer as a *kind*; an empty one is `_Nothing`."""
        connection, response = self._request(method, target, asked)
        try:
            data = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise self._lost() from None
        self._keep(connection)
        return msgspec.json.decode(data or b"{}", type=kind)

    def _lines(self, method: str, target: str) -> Generator[dict[str, Any], None, None]:
        """Yield the objects of an answer that has one a line."""
        connection, response = self._request(method, target, None)
        whole = False
        try:
            rest = b""
            # Not readline: it takes a connection that breaks off for the end of the answer.
            while data := response.read1(_CHUNK):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield msgspec.json.decode(line)
            whole = True
        except (OSError, http.client.HTTPException, msgspec.DecodeError):
            raise self._lost() from None
        finally:
            if whole:
                self._keep(connection)
            else:
                connection.close()

    def _request(
        self, method: str, target: str, asked: object
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        data = None if asked is None else msgspec.json.encode(asked)
        headers = {"Accept": _NDJSON}
        if data is not None:
            headers["Content-Type"] = "application/json"
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            connection = self._connection()
            try:
                connection.request(method, target, body=data, headers=headers)
                response = connection.getresponse()
                if response.status < 400:
                    return connection, response
                answer = response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                raise self._lost() from None
            except BaseException:
                connection.close()
                raise
            self._keep(connection)
            error = _error(response.status, answer)
            if error.code is not Code.BUSY or time.monotonic() > give_up:
                raise error
            time.sleep(float(response.headers.get("Retry-After", "1")))

    def _connection(self) -> _Connection:
        with self._mutex:
            if self._idle:
                connection = self._idle.pop()
                if connection.sock is not None and _quiet(connection.sock):
                    return connection
                connection.close()
        return _Connection(self._path)

    def _keep(self, connection: _Connection) -> None:
        with self._mutex:
            if connection.sock is not None and len(self._idle) < _KEPT:
                self._idle.append(connection)
                return
        connection.close()

    def _serves(self) -> bool:
        """Tell whether an agent answers again."""
        connection = _Connection(self._path)
        try:
            connection.connect()
        except OSError:
            return False
        self._keep(connection)
        return True

    @staticmethod
    def _lost() -> LostError:
        return LostError(
            "the agent went away before it had answered",
            code=Code.NO_AGENT,
            hint="nativert ps -a tells what came of it",
        )

    # Last, since the name hides the type in the rest of the class.

    def list(self) -> list[Instance]:
        """Return every instance, in the order of definition."""
        return self._ask("GET", "/v1/instances", _Rows)


class _Place:
    """Where the reader of a log is: the last line's time, and how many lines had that time."""

    def __init__(self) -> None:
        self._time = ""
        self._same = 0

    @property
    def known(self) -> bool:
        """Whether something has been read."""
        return bool(self._time)

    def beyond(self, lines: Iterable[LogLine]) -> Iterator[LogLine]:
        """Yield what comes after this place, and move on with it."""
        since, skip = self._time, self._same
        for line in lines:
            if line.time < since:
                continue
            if line.time == since and skip:
                skip -= 1
                continue
            self._same = self._same + 1 if line.time == self._time else 1
            self._time = line.time
            yield line


def _one(ref: str) -> str:
    return f"/v1/instances/{quote(ref, safe='')}"


def _quiet(sock: socket.socket) -> bool:
    """Tell whether a kept connection is still open: nothing to be read, also no end."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _error(status: int, answer: bytes) -> NativertError:
    try:
        told = msgspec.json.decode(answer)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        code = Code.BUSY if status == 503 else Code.FAILED
        return NativertError(f"the agent answered with status {status}", code=code)
    return faults.decode(told)
