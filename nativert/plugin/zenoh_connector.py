"""The connector over Zenoh 1.x: each value is kept by whoever put it, and asked for there.

A path is a key without its first slash, a value JSON as zenoh/string, an eval a queryable. The
questions of a space (``alfos/N/**``) come in by one queryable for all of its values and evals.
Zenoh's threads only put what they bring into queues.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
import zenoh
from zenoh.handlers import Callback

from nativert.errors import Code, NativertError
from nativert.plugin import parameters as texts
from nativert.plugin.connector import Answer, Closing, Sample, matches
from nativert.plugin.path_tree import PathTree
from nativert.plugin.string_api import Reply, failure
from nativert.plugin.zenoh_queues import Declared, Listener, Question
from nativert.plugin.zenoh_session import SILENCE, reason

_GET_S: Final = 10.0
_WORKERS: Final = 4
_MOST_QUESTIONS: Final = 1024
# How long an answer waits for what came before the question.
_ORDER_S: Final = 1.0
_STRING: Final = zenoh.Encoding.ZENOH_STRING
_log = logging.getLogger(__name__)


def stamp_order(stamp: str) -> tuple[int, str]:
    """Return what stamps of one network are ordered by: the newer is greater."""
    time, _, who = stamp.partition("/")
    return (int(time) if time.isascii() and time.isdigit() else 0, who)


class ZenohConnector:
    """Satisfies `Connector`.

    Values below *spaces* (selectors) are kept and served until they are deleted or the connector
    is closed; a value elsewhere is told to those who listen now, and kept by nobody here. Below
    *complete* everything that anybody has is kept here: others are not asked for it.
    """

    def __init__(
        self, session: zenoh.Session, *, spaces: Iterable[str] = (), complete: Iterable[str] = ()
    ) -> None:
        self._session = session
        self._spaces = tuple(spaces)
        self._complete = tuple(complete)
        self._mutex = threading.Lock()
        self._kept: PathTree[Sample] = PathTree()
        self._evals: PathTree[Answer] = PathTree()
        self._asked: dict[zenoh.Query, tuple[str, ...]] = {}
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._ordered: tuple[Listener, ...] = ()
        self._closed = False
        for _ in range(_WORKERS):
            threading.Thread(target=self._work, name="zenoh questions", daemon=True).start()
        self._queryables = [self._queryable(space) for space in self._spaces]

    @property
    def session(self) -> zenoh.Session:
        """The session, for what is neither a value nor a question in JSON."""
        return self._session

    def close(self) -> None:
        """Tell those who wait for an answer that there is none, and leave the network."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            asked = dict(self._asked)
            self._asked.clear()
        gone = NativertError("it stops, and does not answer any more", code=Code.NO_AGENT)
        for query, paths in asked.items():
            self._reply(query, paths, failure(gone))
        for _ in range(_WORKERS):
            self._questions.put(None)
        self._session.close()  # type: ignore[no-untyped-call]

    # -- values --------------------------------------------------------------------------

    def get(self, selector: str, *, timeout_s: float = _GET_S) -> list[Sample]:
        """Return what is there now, by path; where several have a path, the newest.

        Those who do not answer in time are left out.
        """
        with self._mutex:
            found = dict(self._kept.find(selector))
        if "*" not in selector and any(matches(space, selector) for space in self._complete):
            return list(found.values())
        try:
            replies = self._session.get(
                _key(selector),
                target=zenoh.QueryTarget.ALL,
                consolidation=zenoh.ConsolidationMode.NONE,
                timeout=timeout_s,
                allowed_destination=zenoh.Locality.REMOTE,
                express=True,
            )
            for reply in replies:
                if reply.ok is not None:
                    sample = self._sample(reply.ok)
                    known = found.get(sample.path)
                    if known is None or stamp_order(known.stamp) < stamp_order(sample.stamp):
                        found[sample.path] = sample
        except zenoh.ZError as e:
            raise _error(selector, e) from None
        return [found[path] for path in sorted(found) if found[path].value is not None]

    def put(self, path: str, value: bytes) -> None:
        """Put a whole value in place of the one before."""
        now = self._session.new_timestamp()
        self.keep(Sample(_path(path), value, str(now)))
        try:
            self._session.put(
                _key(path),
                value,
                encoding=_STRING,
                timestamp=now,
                congestion_control=zenoh.CongestionControl.BLOCK,
                express=True,
            )
        except zenoh.ZError as e:
            raise _error(path, e) from None

    def delete(self, path: str) -> None:
        """Take a value away; safe when absent."""
        with self._mutex:
            self._kept.pop(path)
        try:
            self._session.delete(
                _key(path),
                timestamp=self._session.new_timestamp(),
                congestion_control=zenoh.CongestionControl.BLOCK,
                express=True,
            )
        except zenoh.ZError as e:
            raise _error(path, e) from None

    def keep(self, sample: Sample) -> bool:
        """Serve a value that somebody put, telling nobody; False where a newer one is kept.

        A sample without value is a deletion.
        """
        if not any(matches(space, sample.path) for space in self._spaces):
            return True
        with self._mutex:
            known = self._kept.get(sample.path)
            if known is not None and stamp_order(sample.stamp) <= stamp_order(known.stamp):
                return False
            if sample.value is None:
                self._kept.pop(sample.path)
            else:
                self._kept.set(sample.path, sample)
            return True

    def kept(self, path: str) -> Sample | None:
        """Return what is kept here at *path*, asking nobody."""
        with self._mutex:
            return self._kept.get(path)

    def subscribe(
        self, selector: str, listener: Callable[[Sample], None], *, ordered: bool = False
    ) -> Closing:
        """Call *listener* for what comes from now on, in order, never two at once.

        An *ordered* one has taken what came before a question when that is answered: whoever
        puts and then asks sees what came of it. Such a listener must not ask itself.
        """
        heard = Listener(selector, listener)

        def took(sample: zenoh.Sample) -> None:
            heard.put(self._sample(sample))

        if ordered:
            with self._mutex:
                self._ordered = (*self._ordered, heard)

        def close() -> None:
            with self._mutex:
                self._ordered = tuple(each for each in self._ordered if each is not heard)
            heard.close()

        callback = Callback(took, indirect=False)
        return Declared(self._declare(selector, self._session.declare_subscriber, callback), close)

    # -- questions -----------------------------------------------------------------------

    def eval(self, path: str, answer: Answer) -> Closing:
        """Answer the questions to *path*; another answer to it is replaced."""
        path = _path(path)
        with self._mutex:
            self._evals.set(path, answer)
        own = None
        if not any(matches(space, path) for space in self._spaces):
            own = self._queryable(path)

        def close() -> None:
            with self._mutex:
                if self._evals.get(path) is answer:
                    self._evals.pop(path)

        return Declared(own, close)

    def ask(self, path: str, parameters: Mapping[str, str], *, timeout_s: float) -> Reply:
        """Return the first answer; NativertError NOT_FOUND where nobody answers, TIMEOUT."""
        with self._mutex:
            own = self._evals.get(path)
        if own is not None:
            return own(parameters)
        selector = zenoh.Selector(_key(path), texts.encode(parameters))
        late = False
        try:
            replies = self._session.get(
                selector,
                target=zenoh.QueryTarget.ALL,
                consolidation=zenoh.ConsolidationMode.NONE,
                timeout=timeout_s,
                express=True,
            )
            for reply in replies:
                if reply.ok is not None:
                    return _answer(path, reply.ok.payload.to_bytes())
                late = late or b"imeout" in (reply.err.payload.to_bytes() if reply.err else b"")
        except zenoh.ZError as e:
            raise _error(path, e) from None
        if late:
            text = f"{path}: no answer within {timeout_s:g} s"
            raise NativertError(text, code=Code.TIMEOUT, hint=SILENCE)
        raise NativertError(f"{path}: nobody answers", code=Code.NOT_FOUND, hint=SILENCE)

    # -- liveliness ----------------------------------------------------------------------

    def liveliness(self, path: str) -> Closing:
        """Tell that *path* is alive until closed, or until this process ends."""
        token = self._declare(path, lambda key: self._session.liveliness().declare_token(key))
        return Declared(token, lambda: None)

    def alive(self, selector: str) -> list[str]:
        """Return the paths that are alive."""
        try:
            replies = self._session.liveliness().get(_key(selector), timeout=_GET_S)
            return sorted({_path(str(r.ok.key_expr)) for r in replies if r.ok is not None})
        except zenoh.ZError as e:
            raise _error(selector, e) from None

    def watch(self, selector: str, listener: Callable[[str, bool], None]) -> Closing:
        """Call *listener* with each path that is or becomes alive (True), or ceases to be so."""
        arrived: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()

        def deliver() -> None:
            while (change := arrived.get()) is not None:
                try:
                    listener(*change)
                except Exception:  # noqa: BLE001 (told in the log)
                    _log.exception("%s: a listener has failed", change[0])

        def took(sample: zenoh.Sample) -> None:
            arrived.put((_path(str(sample.key_expr)), sample.kind == zenoh.SampleKind.PUT))

        threading.Thread(target=deliver, name=f"watcher {selector}", daemon=True).start()
        declare = self._session.liveliness().declare_subscriber
        callback = Callback(took, indirect=False)
        declared = self._declare(selector, lambda key: declare(key, callback, history=True))
        return Declared(declared, lambda: arrived.put(None))

    # -- what Zenoh brings ---------------------------------------------------------------

    def _queryable(self, selector: str) -> Any:
        def took(query: zenoh.Query) -> None:
            self._questions.put(Question(query, [(one, one.came) for one in self._ordered]))

        callback = Callback(took, indirect=False)
        return self._declare(selector, self._session.declare_queryable, callback)

    def _declare(self, selector: str, declare: Callable[..., Any], *more: Any) -> Any:
        try:
            return declare(_key(selector), *more)
        except zenoh.ZError as e:
            raise _error(selector, e) from None

    def _sample(self, sample: zenoh.Sample) -> Sample:
        if sample.attachment is not None:
            stamp = sample.attachment.to_string()
        else:
            stamp = str(sample.timestamp or self._session.new_timestamp())
        deleted = sample.kind == zenoh.SampleKind.DELETE
        value = None if deleted else sample.payload.to_bytes()
        return Sample(_path(str(sample.key_expr)), value, stamp)

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            deadline = time.monotonic() + _ORDER_S
            for listener, count in question.after:
                listener.wait(count, deadline)
            try:
                self._take(question.query)
            except zenoh.ZError as e:
                _log.warning("%s: cannot answer: %s", question.query.key_expr, reason(e))
            del question  # Zenoh takes a question that nobody holds for answered.

    def _take(self, query: zenoh.Query) -> None:
        selector = str(query.key_expr)
        with self._mutex:
            values = [sample for _, sample in self._kept.find(selector)]
            evals = list(self._evals.find(selector))
            busy = len(self._asked) >= _MOST_QUESTIONS
        for sample in values:
            if sample.value is not None:
                query.reply(
                    _key(sample.path), sample.value, encoding=_STRING, attachment=sample.stamp
                )
        if not evals:
            return
        paths = tuple(path for path, _ in evals)
        if busy:
            refused = NativertError(f"{_MOST_QUESTIONS} questions wait", code=Code.BUSY)
            self._reply(query, paths, failure(refused))
            return
        with self._mutex:
            self._asked[query] = paths
        # A thread for each: one that runs an application answers when that has ended.
        threading.Thread(
            target=self._answer, args=(query, evals), name=f"answer {selector}", daemon=True
        ).start()

    def _answer(self, query: zenoh.Query, evals: list[tuple[str, Answer]]) -> None:
        given = texts.decode(str(query.parameters))
        for path, answer in evals:
            try:
                reply = answer(given)
            except Exception as e:  # noqa: BLE001 (who asked is told)
                _log.exception("%s: an answer has failed", path)
                reply = failure(NativertError(f"{path}: {type(e).__name__}: {e}"))
            with self._mutex:
                waits = query in self._asked
            if waits:
                self._reply(query, (path,), reply)
        with self._mutex:
            self._asked.pop(query, None)

    @staticmethod
    def _reply(query: zenoh.Query, paths: Iterable[str], reply: Reply) -> None:
        data = msgspec.json.encode(reply)
        for path in paths:
            try:
                query.reply(_key(path), data, encoding=_STRING, express=True)
            except zenoh.ZError as e:
                _log.warning("%s: cannot answer: %s", path, reason(e))


def _answer(path: str, data: bytes) -> Reply:
    try:
        reply = msgspec.json.decode(data)
    except msgspec.DecodeError:
        reply = None
    if not isinstance(reply, dict):
        raise NativertError(f"{path}: what it answers is not a JSON object", code=Code.FAILED)
    return reply


def _error(path: str, e: zenoh.ZError) -> NativertError:
    return NativertError(f"{path}: zenoh: {reason(e)}", code=Code.NETWORK)


def _key(path: str) -> str:
    return path.strip("/")


def _path(key: str) -> str:
    return "/" + key.strip("/")
