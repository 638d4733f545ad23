"""The messages of migrations over Zenoh: each a question with bytes, to the node that it names."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Final

import zenoh
from zenoh.handlers import Callback

from nativert.errors import Code, NativertError
from nativert.plugin.zenoh_session import SILENCE, reason
from nativert.runtime.migration import messages
from nativert.runtime.migration.messages import Answer, Message

_WORKERS: Final = 4
# More than that wait for a worker only while the node is in trouble; their senders ask again.
_MOST: Final = 256
_log = logging.getLogger(__name__)


def _key(node_id: str) -> str:
    return f"nativert/moves/{node_id}"


class ZenohTransport:
    """Satisfies `messages.Transport`, and answers for this node until closed."""

    def __init__(self, session: zenoh.Session, node_id: str, answer: Answer) -> None:
        self._session = session
        self._answer = answer
        self._key = _key(node_id)
        self._questions: queue.Queue[zenoh.Query | None] = queue.Queue(_MOST)
        for _ in range(_WORKERS):
            threading.Thread(target=self._work, name="moves", daemon=True).start()
        self._queryable = session.declare_queryable(self._key, Callback(self._took, indirect=False))

    def close(self) -> None:
        """Answer no longer."""
        try:
            self._queryable.undeclare()  # type: ignore[no-untyped-call]
        except zenoh.ZError as e:
            _log.debug("the session was closed before: %s", reason(e))
        for _ in range(_WORKERS):
            self._questions.put(None)

    def ask(self, peer: str, message: Message, *, timeout_s: float) -> Message:
        """Return what the node *peer* answers; NativertError NOT_FOUND, BUSY or TIMEOUT."""
        try:
            replies = self._session.get(
                _key(peer),
                payload=messages.encode(message),
                target=zenoh.QueryTarget.ALL,
                consolidation=zenoh.ConsolidationMode.NONE,
                timeout=timeout_s,
                express=True,
            )
            late = False
            for reply in replies:
                if reply.ok is None:
                    late = late or b"imeout" in (reply.err.payload.to_bytes() if reply.err else b"")
                    continue
                data = reply.ok.payload.to_bytes()
                if not data:
                    raise NativertError(f"node {peer} is at work on it", code=Code.BUSY)
                return messages.decode(data)
        except zenoh.ZError as e:
            raise NativertError(f"node {peer}: zenoh: {reason(e)}", code=Code.NETWORK) from None
        if late:
            text = f"node {peer}: no answer within {timeout_s:g} s"
            raise NativertError(text, code=Code.TIMEOUT, hint=SILENCE)
        raise NativertError(f"node {peer}: nobody answers", code=Code.NOT_FOUND, hint=SILENCE)

    def _took(self, query: zenoh.Query) -> None:
        try:
            self._questions.put_nowait(query)
        except queue.Full:
            _log.warning("%d messages of migrations wait: one more is dropped", _MOST)

    def _work(self) -> None:
        while (query := self._questions.get()) is not None:
            try:
                payload = query.payload
                if payload is not None:
                    answer = self._answer(messages.decode(payload.to_bytes()))
                    query.reply(
                        self._key, b"" if answer is None else messages.encode(answer), express=True
                    )
            except (NativertError, OSError, zenoh.ZError) as e:
                # Who asked asks again.
                _log.warning("a message of a migration has no answer: %s", e)
            except Exception:  # noqa: BLE001 (told in the log)
                _log.exception("a message of a migration has no answer")
            del query  # Zenoh takes a question that nobody holds for answered.
