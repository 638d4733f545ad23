"""What other nodes' agents ask: answered from the store, or carried out by this node's own API.

A request goes to the API's socket as a command's does, so that everything that holds for those
holds for it: order, bounds, errors. It is given up when its sender does not want it any more, or
has not said for a while that it does.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from nativert.agent.nodes import messages
from nativert.agent.nodes.carried import Carried, Reply
from nativert.agent.nodes.messages import (
    About,
    Dropped,
    Find,
    Found,
    Head,
    Holding,
    Holds,
    Piece,
    Request,
    Summary,
    Taken,
    Talk,
)
from nativert.agent.nodes.talking import talk
from nativert.agent.wire import Connection
from nativert.errors import Code, NativertError, UnknownInstanceError
from nativert.runtime.context import Context
from nativert.store import moves
from nativert.store.moves import Outcome
from nativert.store.rows import Row

# Who asks for another node names itself in this header: such a request goes no further.
SENDER: Final = "Nativert-Sender"
_LOOK_S: Final = 2.0
_SILENCE_S: Final = 15.0


class Serving:
    """Answers for one node; *addresses* are the endpoints that it listens on."""

    def __init__(self, context: Context, addresses: tuple[str, ...]) -> None:
        self._context = context
        self._addresses = addresses
        self._mutex = threading.Lock()
        self._carried: dict[str, Carried] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="requests", daemon=True).start()

    def close(self) -> None:
        """Give up what is under way."""
        self._closed.set()
        with self._mutex:
            carried = list(self._carried.values())
        for each in carried:
            each.drop()

    def summary(self) -> Summary:
        """Return what this node tells of itself."""
        return Summary(
            name=self._context.name,
            addresses=self._addresses,
            instances=len(self._context.store.rows()),
        )

    def answer(self, data: bytes, reply: Reply) -> None:
        """Answer one question; NativertError for what is none."""
        match messages.decode(data):
            case About():
                reply(msgspec.json.encode(self.summary()))
            case Find(ref=ref):
                reply(msgspec.json.encode(self._find(ref)))
            case Holds(instance=instance):
                reply(msgspec.json.encode(self._holds(instance)))
            case Request() | Talk() as request:
                self._carry(request, reply)
            case Piece(id=id_) as piece:
                carried = self._carried.get(id_)
                took = carried is not None and carried.give(piece)
                reply(msgspec.json.encode(took))
            case Taken(id=id_, parts=parts):
                carried = self._carried.get(id_)
                if carried is not None:
                    carried.taken(parts)
                reply(msgspec.json.encode(carried is not None))
            case Dropped(id=id_):
                carried = self._carried.get(id_)
                if carried is not None:
                    carried.drop()

    def _find(self, ref: str) -> list[Found]:
        store = self._context.store
        try:
            row = store.find(ref)
        except UnknownInstanceError:
            return []
        except NativertError as e:
            if e.code is not Code.AMBIGUOUS:
                raise
            prefix = ref.lower()
            return [_found(r, exact=False) for r in store.rows() if r.uuid.startswith(prefix)]
        return [_found(row, exact=row.name == ref or row.uuid == ref.lower())]

    def _holds(self, instance: str) -> Holding:
        store = self._context.store
        try:
            row = store.get(instance)
        except UnknownInstanceError:
            # Whatever became of a move of which nothing is left here, it is there by now.
            fence = store.fence(instance)
            away = fence is not None and fence.outcome is not Outcome.LANDED
            return Holding(here=False, given=fence.peer if fence is not None and away else "")
        return Holding(here=True, addresses=tuple(each.address for each in row.interfaces))

    def _carry(self, request: Request | Talk, reply: Reply) -> None:
        api = self._context.paths.api_socket
        carried = Carried(reply)
        with self._mutex:
            self._carried[request.id] = carried
        try:
            if isinstance(request, Talk):
                talk(api, request.target, {SENDER: request.sender}, carried)
            else:
                _ask(api, request, carried)
        except (OSError, http.client.HTTPException) as e:
            # Its sender knows by the missing end that it was broken off.
            if not carried.dropped:
                raise NativertError(f"{request.target}: {e}", code=Code.NO_AGENT) from None
        finally:
            with self._mutex:
                self._carried.pop(request.id, None)
            carried.finish()

    def _watch(self) -> None:
        """Give up what nobody has asked after for long: its sender is gone."""
        while not self._closed.wait(_LOOK_S):
            since = time.monotonic() - _SILENCE_S
            with self._mutex:
                forgotten = [each for each in self._carried.values() if each.heard < since]
            for each in forgotten:
                each.drop()


def _ask(api: Path, request: Request, carried: Carried) -> None:
    with closing(Connection(api)) as connection:
        connection.connect()
        with carried.broken_off_by(connection.abort):
            _send(connection, request, carried)
            response = connection.getresponse()
            carried.finish()
            head = Head(status=response.status, form=response.headers.get("Content-Type", ""))
            carried.send(messages.HEAD + msgspec.json.encode(head))
            while data := response.read1(messages.CHUNK):
                carried.send(messages.DATA + data)
    carried.send(messages.END)


def _send(connection: Connection, request: Request, carried: Carried) -> None:
    headers = {SENDER: request.sender}
    if request.accept:
        headers["Accept"] = request.accept
    if request.given:
        carried.send(messages.READY)
        connection.put(request.target, headers, _body(carried))
        return
    if request.body:
        headers["Content-Type"] = "application/json"
    connection.request(request.method, request.target, request.body or None, headers)


def _body(carried: Carried) -> Iterator[bytes]:
    while (piece := carried.next()) is not None:
        if piece.last:
            return
        yield piece.data
    # Without its end it must not be taken for the whole.
    raise ConnectionResetError("the sender went away before the end of the body")


def _found(row: Row, *, exact: bool) -> Found:
    move = None if row.corrupt else moves.decode(row.moving)
    return Found(
        instance=row.uuid,
        name=row.name,
        exact=exact,
        lands=move is not None and not move.leaves,
    )
