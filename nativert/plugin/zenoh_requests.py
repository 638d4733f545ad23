"""Questions of one agent to another over Zenoh: bytes to a node, and bytes back, in parts.

Each question that comes has a thread of its own: some answers last as long as an application.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

import zenoh
from zenoh.handlers import Callback

from nativert.errors import Code, NativertError
from nativert.plugin.zenoh_session import reason

# Answers one question: what was asked, and what takes each part of the answer.
Answer = Callable[[bytes, Callable[[bytes], None]], None]
EVERYBODY: Final = "*"
_MOST: Final = 512
_PREFIX: Final = "nativert/requests/"
_log = logging.getLogger(__name__)


class ZenohRequests:
    """Answers for one node, from construction until closed, and asks others."""

    def __init__(self, session: zenoh.Session, node_id: str, answer: Answer) -> None:
        self._session = session
        self._answer = answer
        self._key = _PREFIX + node_id
        self._mutex = threading.Lock()
        self._answering = 0
        self._queryable = session.declare_queryable(self._key, Callback(self._took, indirect=False))

    def close(self) -> None:
        """Answer no longer."""
        try:
            self._queryable.undeclare()  # type: ignore[no-untyped-call]
        except zenoh.ZError as e:
            _log.debug("the session was closed before: %s", reason(e))

    def send(
        self,
        node: str,
        data: bytes,
        *,
        timeout_s: float,
        took: Callable[[str, bytes], None],
        over: Callable[[], None],
    ) -> None:
        """Ask a node, or `EVERYBODY` else; NativertError NETWORK.

        *took* is called with the node and each part of its answer, *over* once when no more can
        come: all of it has, or the node is gone, or the time. Both must not block.
        """

        def arrived(reply: zenoh.Reply) -> None:
            if reply.ok is not None:
                who = str(reply.ok.key_expr).removeprefix(_PREFIX)
                took(who, reply.ok.payload.to_bytes())

        try:
            self._session.get(
                _PREFIX + node,
                Callback(arrived, over, indirect=False),
                payload=data,
                target=zenoh.QueryTarget.ALL,
                consolidation=zenoh.ConsolidationMode.NONE,
                timeout=timeout_s,
                allowed_destination=zenoh.Locality.REMOTE,
                express=True,
            )
        except zenoh.ZError as e:
            raise NativertError(f"node {node}: zenoh: {reason(e)}", code=Code.NETWORK) from None

    def ask(self, node: str, data: bytes, *, timeout_s: float) -> list[tuple[str, bytes]]:
        """Return what a node, or `EVERYBODY` else, answers in time; nothing of who does not."""
        parts: SimpleQueue[tuple[str, bytes] | None] = SimpleQueue()
        self.send(
            node,
            data,
            timeout_s=timeout_s,
            took=lambda who, part: parts.put((who, part)),
            over=lambda: parts.put(None),
        )
        return list(iter(parts.get, None))

    def _took(self, query: zenoh.Query) -> None:
        with self._mutex:
            if self._answering >= _MOST:
                _log.warning("%d questions of other nodes wait: one more is dropped", _MOST)
                return
            self._answering += 1
        # Held by this thread alone: Zenoh takes a question that nobody holds for answered.
        thread = threading.Thread(target=self._work, args=([query],), name="request", daemon=True)
        try:
            thread.start()
        except RuntimeError as e:
            _log.warning("a question of another node is dropped: %s", e)
            self._done()

    def _work(self, held: list[zenoh.Query]) -> None:
        query = held.pop()

        def reply(part: bytes) -> None:
            query.reply(
                self._key, part, congestion_control=zenoh.CongestionControl.BLOCK, express=True
            )

        try:
            payload = query.payload
            if payload is not None:
                self._answer(payload.to_bytes(), reply)
        except (NativertError, OSError, zenoh.ZError) as e:
            _log.warning("a question of another node has no answer: %s", e)
        except Exception:  # noqa: BLE001 (told in the log)
            _log.exception("a question of another node has no answer")
        finally:
            self._done()

    def _done(self) -> None:
        with self._mutex:
            self._answering -= 1
