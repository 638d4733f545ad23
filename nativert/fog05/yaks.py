"""What fog05 0.2 uses of the package `yaks`, over Zenoh 1.x.

A path is a key without its first slash; a selector may end in ``?(parameters)``, which makes it
a question to an eval.
"""

from __future__ import annotations

import enum
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

import zenoh
from zenoh.handlers import Callback

from nativert.errors import Code, NativertError
from nativert.plugin import parameters as texts
from nativert.plugin import zenoh_credentials
from nativert.plugin.string_api import failure
from nativert.plugin.zenoh_connector import stamp_order
from nativert.plugin.zenoh_credentials import Credentials
from nativert.plugin.zenoh_session import SILENCE, Settings, open_session, reason

__all__ = [
    "Change",
    "ChangeKind",
    "Encoding",
    "Entry",
    "NoAnswerError",
    "Value",
    "Workspace",
    "Yaks",
]

_READY: Final = "yaks_shim/ready"
_JOIN_S: Final = 5.0
_GET_S: Final = 10.0
# An eval may run an application, and answers when that has ended.
_EVAL_S: Final = 30 * 86400.0
_PORT: Final = 7447
_VARIABLE: Final = "NATIVERT_ZENOH_CREDENTIALS"
_RUN: Final = "/run"
# Below it is what clients want nodes to do.
_DESIRED: Final = "dgfos/"


class Encoding(enum.Enum):
    """How a value is written; fog05 uses STRING only."""

    RAW = 0
    STRING = 2
    PROPERTIES = 3
    JSON = 4


class ChangeKind(enum.Enum):
    """What has happened to a value."""

    PUT = 0
    UPDATE = 1
    REMOVE = 2


class Value:
    """A value with its encoding."""

    def __init__(self, value: Any, encoding: Encoding = Encoding.STRING) -> None:
        self.value = value
        self.encoding = encoding

    def get_value(self) -> Any:
        """Return what was given."""
        return self.value

    def get_encoding(self) -> Encoding:
        """Return the encoding."""
        return self.encoding


class Entry:
    """A path and its value; the value is None for a removal."""

    def __init__(self, path: str, value: Value | None) -> None:
        self.path = path
        self.value = value

    def get_path(self) -> str:
        """Return the path, with its first slash."""
        return self.path

    def get_value(self) -> Value | None:
        """Return the value."""
        return self.value


class Change(Entry):
    """What a subscriber is told."""

    def __init__(self, path: str, kind: ChangeKind, value: Value | None) -> None:
        super().__init__(path, value)
        self.kind = kind

    def get_kind(self) -> ChangeKind:
        """Return what has happened."""
        return self.kind


class NoAnswerError(NativertError, ValueError):
    """Nobody answers, or takes what is desired; fog05 itself raises ValueError then."""


class Workspace:
    """Reads and writes; *executor* runs what is called back."""

    def __init__(self, session: zenoh.Session, prefix: str, executor: Executor | None) -> None:
        self._session = session
        self._prefix = prefix
        self._executor = executor
        self._mutex = threading.Lock()
        self._declared: dict[str, Any] = {}
        self._count = 0
        self._alone_since: float | None = None

    def put(self, path: str, value: Value) -> bool:
        """Put a whole value; NoAnswerError TIMEOUT for a request that no node takes."""
        key = self._key(path)
        self._until_taken(key)
        self._session.put(
            key,
            str(value.get_value()),
            encoding=zenoh.Encoding.ZENOH_STRING,
            timestamp=self._session.new_timestamp(),
            congestion_control=zenoh.CongestionControl.BLOCK,
            express=True,
        )
        return True

    def remove(self, path: str) -> bool:
        """Take a value away; NoAnswerError TIMEOUT for a request that no node takes."""
        key = self._key(path)
        self._until_taken(key)
        self._session.delete(
            key,
            timestamp=self._session.new_timestamp(),
            congestion_control=zenoh.CongestionControl.BLOCK,
            express=True,
        )
        return True

    def get(self, selector: str) -> list[Entry]:
        """Return what a selector means, by path; of an eval the first answer.

        NoAnswerError: NOT_FOUND for an eval that nobody answers (`run` has that as its answer),
        NETWORK without any node.
        """
        path, parameters, is_eval = _parse(selector)
        replies = self._session.get(
            zenoh.Selector(self._key(path), parameters),
            target=zenoh.QueryTarget.ALL,
            consolidation=zenoh.ConsolidationMode.NONE,
            timeout=_EVAL_S if is_eval else _GET_S,
            express=True,
        )
        found: dict[str, tuple[tuple[int, str], Entry]] = {}
        for reply in replies:
            if reply.ok is None:
                continue
            sample = reply.ok
            entry = Entry(f"/{sample.key_expr}", Value(sample.payload.to_string()))
            if is_eval:
                return [entry]
            stamp = sample.attachment or sample.timestamp
            order = stamp_order("" if stamp is None else _text(stamp))
            known = found.get(entry.path)
            if known is None or known[0] < order:
                found[entry.path] = (order, entry)
        if is_eval:
            silent = NoAnswerError(f"{path}: nobody answers", code=Code.NOT_FOUND, hint=SILENCE)
            if not path.endswith(_RUN):
                raise silent
            # The client asks this in a thread of its own, whose exceptions nobody hears: it
            # would wait for the result for ever.
            return [Entry(path, Value(json.dumps(failure(silent))))]
        if found:
            self._alone_since = None
        else:
            self._refuse_if_alone()
        return [found[path][1] for path in sorted(found)]

    def subscribe(self, selector: str, listener: Callable[[list[Change]], None]) -> str:
        """Call *listener* for what comes; return what `unsubscribe` takes."""

        def took(sample: zenoh.Sample) -> None:
            path, removed = f"/{sample.key_expr}", sample.kind == zenoh.SampleKind.DELETE
            kind = ChangeKind.REMOVE if removed else ChangeKind.PUT
            value = None if removed else Value(sample.payload.to_string())
            self._call(listener, [Change(path, kind, value)])

        key = self._key(selector)
        declared = self._session.declare_subscriber(key, Callback(took, indirect=True))
        with self._mutex:
            self._count += 1
            name = f"{self._count}:{key}"
            self._declared[name] = declared
        return name

    def unsubscribe(self, subscription: str) -> bool:
        """Call the listener no longer."""
        return self._undeclare(subscription)

    def register_eval(self, path: str, answer: Callable[[str, Mapping[str, Any]], Value]) -> bool:
        """Answer the questions to *path*."""
        key = self._key(path)

        def took(query: zenoh.Query) -> None:
            def reply() -> None:
                given = _nested(texts.decode(str(query.parameters)))
                value = answer(f"/{key}", given)
                query.reply(
                    key, str(value.get_value()), encoding=zenoh.Encoding.ZENOH_STRING, express=True
                )

            self._call(reply)

        self._undeclare(key)
        declared = self._session.declare_queryable(key, Callback(took, indirect=True))
        with self._mutex:
            self._declared[key] = declared
        return True

    def unregister_eval(self, path: str) -> bool:
        """Answer no longer."""
        return self._undeclare(self._key(path))

    def _until_taken(self, key: str) -> None:
        """Wait until somebody hears what is desired: the client itself waits for ever for more."""
        if not key.startswith(_DESIRED):
            return
        publisher = self._session.declare_publisher(key)
        try:
            deadline = time.monotonic() + _JOIN_S
            while not publisher.matching_status.matching:  # type: ignore[attr-defined]
                if time.monotonic() > deadline:
                    raise NoAnswerError(
                        f"/{key}: no node takes it within {_JOIN_S:g} s",
                        code=Code.TIMEOUT,
                        hint=SILENCE,
                    )
                time.sleep(0.005)
        finally:
            publisher.undeclare()  # type: ignore[no-untyped-call]

    def _refuse_if_alone(self) -> None:
        """Refuse to find nothing for ever where the session has lost its node."""
        info = self._session.info
        if info.peers_zid() or info.routers_zid():
            self._alone_since = None
            return
        now = time.monotonic()
        if self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since > _JOIN_S:
            raise NoAnswerError(
                f"no node for {_JOIN_S:g} s: the connection is lost",
                code=Code.NETWORK,
                hint="see whether the agent that the client was given runs",
            )
        time.sleep(0.02)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._executor is None:
            function(*arguments)
        else:
            self._executor.submit(function, *arguments)

    def _undeclare(self, name: str) -> bool:
        with self._mutex:
            declared = self._declared.pop(name, None)
        if declared is not None:
            declared.undeclare()
        return declared is not None

    def _key(self, path: str) -> str:
        return (path if path.startswith("/") else f"{self._prefix}/{path}").strip("/")


_shown: Path | None = None


def show(path: Path | None) -> None:
    """Have the sessions that are opened from now on show what a file of credentials has."""
    global _shown
    _shown = path


def _credentials() -> Credentials | None:
    named = os.environ.get(_VARIABLE)
    path = _shown or (Path(named) if named else None)
    return None if path is None else zenoh_credentials.read(path)


class Yaks:
    """A session with a network of nodes."""

    def __init__(self, session: zenoh.Session) -> None:
        self._session = session

    @staticmethod
    def login(locator: str, properties: Mapping[str, Any] | None = None) -> Yaks:
        """Join the network at ``IP:PORT``; NativertError where nobody answers there.

        *properties* has keys of Zenoh's own configuration with their values. What `show` named, or
        the variable NATIVERT_ZENOH_CREDENTIALS, is shown to who is there.
        """
        credentials = _credentials()
        endpoint = locator if "/" in locator else f"{'tls' if credentials else 'tcp'}/{locator}"
        if endpoint.count(":") == 0:
            endpoint = f"{endpoint}:{_PORT}"
        session = open_session(
            Settings(
                mode="client",
                connect=(endpoint,),
                credentials=credentials,
                more=dict(properties or {}),
            )
        )
        # A session is open before it knows who else is there: what is put then is lost.
        deadline = time.monotonic() + _JOIN_S
        while time.monotonic() < deadline:
            try:
                for reply in session.get(_READY, timeout=_JOIN_S):
                    if reply.ok is not None:
                        return Yaks(session)
            except zenoh.ZError as e:
                raise NativertError(f"{endpoint}: {reason(e)}", code=Code.NETWORK) from None
            time.sleep(0.02)
        session.close()  # type: ignore[no-untyped-call]
        raise NativertError(
            f"{endpoint}: no node answers there",
            code=Code.NETWORK,
            hint="look whether a `nativert agent` with [zenoh] runs, and whether its access "
            "control lets these credentials ask it",
        )

    def admin(self) -> None:
        """Return nothing: there is no server to administrate."""

    def workspace(self, path: str, executor: Executor | None = None) -> Workspace:
        """Return a workspace; paths without a first slash are below *path*."""
        return Workspace(self._session, path, executor)

    def logout(self) -> bool:
        """Leave the network."""
        self._session.close()  # type: ignore[no-untyped-call]
        return True


def _parse(selector: str) -> tuple[str, str, bool]:
    """Return path, parameters and whether it asks an eval."""
    path, mark, rest = selector.partition("?")
    begin, end = rest.find("("), rest.rfind(")")
    parameters = rest[begin + 1 : end] if 0 <= begin < end else ""
    is_eval = bool(mark) or "/exec/" in path
    return path.rstrip("/"), parameters, is_eval or path.rstrip("/").endswith(_LEAVES)


# Asked without parameters, with no mark at all.
_LEAVES: Final = tuple(f"/{name}" for name in ("start", "run", "log", "ls", "get"))


def _nested(flat: Mapping[str, str]) -> dict[str, Any]:
    """Return parameters with ``a.b=c`` as an object in an object, as YAKS does."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split(".")
        branch = nested
        for part in above:
            below = branch.setdefault(part, {})
            branch = below if isinstance(below, dict) else {}
        branch[last] = value
    return nested


def _text(stamp: Any) -> str:
    return stamp.to_string() if isinstance(stamp, zenoh.ZBytes) else str(stamp)
