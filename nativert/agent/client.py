"""A node reached through its agent: the same questions and operations as `runtime.Node`.

What can't be asked any more because the agent has ended is done by the node itself, in this
process: `_or_alone`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from nativert.agent import faults
from nativert.agent.wire import GoneError, LostError, Wire, lost
from nativert.errors import NativertError, UnknownInstanceError
from nativert.fdu import descriptor as descriptors
from nativert.fdu.descriptor import Descriptor
from nativert.fdu.known import known
from nativert.runtime import data
from nativert.runtime.facade import Facade, Session
from nativert.runtime.protocols import Progress
from nativert.runtime.views import (
    Check,
    Entry,
    Event,
    Figures,
    Instance,
    Leftover,
    LogLine,
)

if TYPE_CHECKING:
    from nativert.agent.api.messages import Everywhere, KnownNode

_T = TypeVar("_T")
_P = ParamSpec("_P")
_Rows = list[Instance]


def _or_alone(
    method: Callable[Concatenate[Client, _P], _T],
) -> Callable[Concatenate[Client, _P], _T]:
    """Do without the agent what can't be asked of it any more."""

    @functools.wraps(method)
    def ask(client: Client, /, *args: _P.args, **options: _P.kwargs) -> _T:
        try:
            return method(client, *args, **options)
        except GoneError as e:
            with client.alone(e) as node:
                answer: _T = getattr(node, method.__name__)(*args, **options)
                return answer

    return ask


class _Nothing(msgspec.Struct):
    pass


class Client:
    """The agent that serves on *path*; raises OSError if none does.

    *direct* opens the node without it, for what passes descriptors. With *node* the agent has
    that other node do everything.
    """

    def __init__(
        self, path: Path, *, direct: Callable[[], Facade], node: str | None = None
    ) -> None:
        self._wire = Wire(path, node=node)
        self.direct = direct
        self.elsewhere = node

    @contextmanager
    def alone(self, gone: GoneError) -> Iterator[Facade]:
        """Open the node without its agent; raises *gone* for what concerns another one."""
        if self.elsewhere:
            raise gone
        with self.direct() as node:
            try:
                yield node
            except UnknownInstanceError:
                # It may be another node's, which only the agent could ask.
                raise gone from None

    def close(self) -> None:
        """Close what is open; instances and agent go on."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- operations --------------------------------------------------------------------

    @_or_alone
    def define(self, descriptor: Descriptor, *, name: str | None = None) -> Instance:
        """Enter an instance of *descriptor*."""
        asked = {"descriptor": msgspec.Raw(descriptors.encode(descriptor)), "name": name}
        return self._wire.ask("POST", "/v1/instances", Instance, asked)

    @_or_alone
    def redefine(self, ref: str, descriptor: Descriptor) -> Instance:
        """Have *descriptor* in the place of a DEFINED instance's own; its /data and log stay."""
        asked = {"descriptor": msgspec.Raw(descriptors.encode(descriptor))}
        return self._wire.ask("POST", f"{_one(ref)}/redefine", Instance, asked)

    @_or_alone
    def configure(self, ref: str, *, progress: Progress | None = None) -> Instance:
        """Fetch the image; make cgroups, namespaces, root file system, network."""
        answer: Instance | NativertError = lost()
        for line in self._wire.lines("POST", f"{_one(ref)}/configure"):
            match line:
                case {"progress": {"received": received, "total": total}}:
                    if progress is not None:
                        progress(received, total)
                case {"result": row}:
                    answer = msgspec.convert(row, known(Instance))
                case {"error": error}:
                    answer = faults.decode(error)
        if isinstance(answer, NativertError):
            raise answer
        return answer

    @_or_alone
    def clean(self, ref: str) -> Instance:
        """Remove all that configure made."""
        return self._wire.ask("POST", f"{_one(ref)}/clean", Instance)

    @_or_alone
    def run(self, ref: str, *, env: Mapping[str, str] | None = None) -> Instance:
        """Start the application; *env* is added to the descriptor's."""
        return self._wire.ask("POST", f"{_one(ref)}/start", Instance, {"env": dict(env or {})})

    @_or_alone
    def stop(self, ref: str) -> Instance:
        """Send the stop signal, wait for the grace, kill what is left."""
        return self._wire.ask("POST", f"{_one(ref)}/stop", Instance)

    @_or_alone
    def restart(self, ref: str) -> Instance:
        """Stop and start, with the environment of the last start."""
        return self._wire.ask("POST", f"{_one(ref)}/restart", Instance)

    @_or_alone
    def pause(self, ref: str) -> Instance:
        """Freeze the application."""
        return self._wire.ask("POST", f"{_one(ref)}/pause", Instance)

    @_or_alone
    def resume(self, ref: str) -> Instance:
        """Thaw the application."""
        return self._wire.ask("POST", f"{_one(ref)}/resume", Instance)

    @_or_alone
    def scale(self, ref: str, change: Mapping[str, object], *, force: bool = False) -> Instance:
        """Change limits of the running application; keys are the fields of `Limits`."""
        asked = {"limits": dict(change), "force": force}
        return self._wire.ask("POST", f"{_one(ref)}/scale", Instance, asked)

    def migrate(self, ref: str, peer: str) -> dict[str, Any]:
        """Move the running instance to the node *peer*; return what that says of it."""
        return self._wire.ask("POST", f"{_one(ref)}/migrate", dict[str, Any], {"node": peer})

    @_or_alone
    def undefine(self, ref: str) -> None:
        """Forget the instance: nothing of it is left."""
        self._wire.ask("POST", f"{_one(ref)}/undefine", _Nothing)

    @_or_alone
    def remove(self, ref: str, *, force: bool = False) -> None:
        """Take the edges down to UNDEFINED; with *force* a running application is killed."""
        self._wire.ask("DELETE", _one(ref) + ("?force=true" if force else ""), _Nothing)

    @_or_alone
    def kill(self, ref: str, number: int) -> None:
        """Send a signal to the application's first process."""
        self._wire.ask("POST", f"{_one(ref)}/kill", _Nothing, {"signal": int(number)})

    def wait(self, ref: str, *, timeout_s: float | None = None) -> Instance:
        """Wait until the application has ended; NativertError(TIMEOUT).

        A wait goes on when the agent ends: with the next one, or without.
        """
        left_s, began = timeout_s, time.monotonic()
        while True:
            try:
                return self._wire.ask("POST", f"{_one(ref)}/wait", Instance, {"timeout_s": left_s})
            except LostError as e:
                if timeout_s is not None:
                    left_s = max(0.0, timeout_s - (time.monotonic() - began))
                if isinstance(e, GoneError):
                    with self.alone(e) as node:
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
        and the session outlives it. One on another node goes through the agents of both.
        """
        if self.elsewhere is None:
            with self.direct() as node:
                try:
                    return node.exec(ref, argv, stdio=stdio, tty=tty, env=env)
                except UnknownInstanceError:
                    row = self.get(ref)
                # NODE/NAME, and it is this node.
                if any(row.instance == own.instance for own in node.list()):
                    return node.exec(row.instance, argv, stdio=stdio, tty=tty, env=env)
        from nativert.agent.session import RemoteSession

        program = {"argv": list(argv), "env": dict(env or {}), "tty": tty}
        return RemoteSession(self._wire, f"{_one(ref)}/exec", program, stdio)

    def logs(self, ref: str, *, follow: bool = False, tail: int | None = None) -> Iterator[LogLine]:
        """Yield the log of the instance's runs; with *follow* until the application ends.

        It goes on where it was when the agent ends, or has dropped a reader that was too slow.
        """
        place = _Place()
        while True:
            asked = {"follow": "true"} if follow else {}
            if tail is not None and not place.known:
                asked["tail"] = str(tail)
            lines = self._wire.lines("GET", f"{_one(ref)}/logs?{urlencode(asked)}")
            try:
                yield from place.beyond(msgspec.convert(line, LogLine) for line in lines)
                return
            except GoneError as e:
                with self.alone(e) as node:
                    again = None if place.known else tail
                    yield from place.beyond(node.logs(ref, follow=follow, tail=again))
                return
            except LostError:
                if not follow:
                    raise

    def ls(self, ref: str, path: str = "") -> Iterator[Entry]:
        """Yield what a directory below /data holds, in its own order; of a file the file."""
        lines = self._wire.lines("GET", f"{_one(ref)}/files?{_path(path)}")
        try:
            yield from (msgspec.convert(line, known(Entry)) for line in lines)
        except GoneError as e:
            with self.alone(e) as node:
                yield from node.ls(ref, path)

    def read_file(self, ref: str, path: str) -> Iterator[bytes]:
        """Yield a regular file below /data in pieces."""
        try:
            yield from self._wire.pieces("GET", f"{_one(ref)}/file?{_path(path)}")
        except GoneError as e:
            with self.alone(e) as node:
                yield from node.read_file(ref, path)

    @_or_alone
    def write_file(
        self, ref: str, path: str, pieces: Iterable[bytes], *, mode: int = 0o644
    ) -> Entry:
        """Put a file below /data in place at once, the application's own; all or nothing."""
        target = f"{_one(ref)}/file?{_path(path, mode=f'{mode & data.MODES:04o}')}"
        return self._wire.send(target, Entry, pieces)

    # -- questions ---------------------------------------------------------------------

    @_or_alone
    def get(self, ref: str) -> Instance:
        """Return one instance."""
        return self._wire.ask("GET", _one(ref), Instance)

    @_or_alone
    def stats(self, refs: Sequence[str] | None = None) -> list[Figures]:
        """Return the figures of the given instances, or of all that run."""
        if refs:
            return [self._wire.ask("GET", f"{_one(ref)}/stats", Figures) for ref in refs]
        return self._wire.ask("GET", "/v1/stats", list[Figures])

    @_or_alone
    def inspect(self, ref: str) -> dict[str, object]:
        """Return the fog05 record with the true status, and a ``native`` object beside it."""
        return self._wire.ask("GET", f"{_one(ref)}/inspect", dict[str, object])

    @_or_alone
    def events(self, after: int = 0, *, limit: int = 1000) -> Sequence[Event]:
        """Return at most *limit* events with numbers above *after*, oldest first."""
        lines = self._wire.lines("GET", f"/v1/events?after={after}&limit={limit}")
        return [msgspec.convert(line, known(Event)) for line in lines]

    @_or_alone
    def wait_events(self, after: int, timeout_s: float, *, limit: int = 1000) -> Sequence[Event]:
        """Return events above *after*, as soon as there are some; none after *timeout_s*."""
        target = f"/v1/events?after={after}&limit={limit}&wait={timeout_s}"
        return [msgspec.convert(line, known(Event)) for line in self._wire.lines("GET", target)]

    @_or_alone
    def latest_event(self) -> int:
        """Return the number of the newest event: from here on, only new ones come."""
        return self._wire.ask("GET", "/v1/events/latest", dict[str, int])["seq"]

    def nodes(self) -> tuple[KnownNode, ...]:
        """Return this node and every other that its agent has seen."""
        from nativert.agent.api.messages import KnownNode

        return self._wire.ask("GET", "/v1/nodes", tuple[KnownNode, ...])

    def everywhere(self) -> Everywhere:
        """Return the instances of all nodes that are there."""
        from nativert.agent.api.messages import Everywhere

        return self._wire.ask("GET", "/v1/nodes/instances", Everywhere)

    def version(self) -> dict[str, str | int]:
        """Return who serves: versions, node, pid."""
        return self._wire.ask("GET", "/v1/version", dict[str, str | int])

    @_or_alone
    def gc(self, *, dry_run: bool = False) -> list[Leftover]:
        """Remove what carries this node's tag and belongs to no instance."""
        return self._wire.ask("POST", "/v1/gc", list[Leftover], {"dry_run": dry_run})

    @_or_alone
    def doctor(self) -> list[Check]:
        """Return what this host can and cannot enforce, with the fix for each."""
        return self._wire.ask("GET", "/v1/doctor", list[Check])

    # Last, since the name hides the type in the rest of the class.

    @_or_alone
    def list(self) -> list[Instance]:
        """Return every instance, in the order of definition."""
        return self._wire.ask("GET", "/v1/instances", _Rows)


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


def _path(path: str, **more: str) -> str:
    data.below(path)  # What has no bytes to be sent is refused as without an agent.
    return urlencode({"path": path, **more})


def _one(ref: str) -> str:
    return f"/v1/instances/{quote(ref, safe='')}"
