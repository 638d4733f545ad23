"""What other nodes' agents ask: answered from the store, or carried out by this node's own API.

A request goes to the API's socket as a command's does, so that everything that holds for those
holds for it: order, bounds, errors. It is given up when its sender does not want it any more, or
has not said for a while that it does.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from nativert.agent.nodes import messages
from nativert.agent.nodes.messages import (
    About,
    Dropped,
    Find,
    Found,
    Head,
    Holding,
    Holds,
    Request,
    Summary,
    Taken,
)
from nativert.agent.wire import Connection
from nativert.errors import Code, NativertError, UnknownInstanceError
from nativert.runtime.context import Context
from nativert.store import moves
from nativert.store.moves import Outcome
from nativert.store.rows import Row

# Who asks for another node names itself in this header: such a request goes no further.
SENDER: Final = "Nativert-Sender"
_CHUNK: Final = 65536
_LOOK_S: Final = 2.0
_SILENCE_S: Final = 15.0
Reply = Callable[[bytes], None]


class _Carried:
    """A request under way; `drop` ends it from another thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._changed = threading.Condition()
        self._sent = 0
        self._taken = 0
        self.heard = time.monotonic()
        self.dropped = False

    def taken(self, parts: int) -> None:
        """Note that its sender is there, and how much of the answer has arrived."""
        with self._changed:
            self.heard = time.monotonic()
            self._taken = max(self._taken, parts)
            self._changed.notify_all()

    def send(self, reply: Reply, part: bytes) -> None:
        """Send a part, as soon as there is room; ConnectionError when it is dropped."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.dropped or self._sent - self._taken < messages.WINDOW
            )
            if self.dropped:
                raise ConnectionResetError("nobody wants the answer any more")
            self._sent += 1
        reply(part)

    def drop(self) -> None:
        """Give it up: the API sees its client leave."""
        with self._changed:
            self.dropped = True
            self._changed.notify_all()
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)


class Serving:
    """Answers for one node; *addresses* are the endpoints that it listens on."""

    def __init__(self, context: Context, addresses: tuple[str, ...]) -> None:
        self._context = context
        self._addresses = addresses
        self._mutex = threading.Lock()
        self._carried: dict[str, _Carried] = {}
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
            case Request() as request:
                self._carry(request, reply)
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

    def _carry(self, request: Request, reply: Reply) -> None:
        connection = Connection(self._context.paths.api_socket)
        carried = _Carried(connection)
        with self._mutex:
            self._carried[request.id] = carried
        try:
            connection.connect()
            headers = {SENDER: request.sender}
            if request.accept:
                headers["Accept"] = request.accept
            if request.body:
                headers["Content-Type"] = "application/json"
            connection.request(request.method, request.target, request.body or None, headers)
            response = connection.getresponse()
            form = response.headers.get("Content-Type", "")
            head = Head(status=response.status, form=form)
            carried.send(reply, messages.HEAD + msgspec.json.encode(head))
            while data := response.read1(_CHUNK):
                carried.send(reply, messages.DATA + data)
            carried.send(reply, messages.END)
        except (OSError, http.client.HTTPException) as e:
            # Its sender knows by the missing end that it was broken off.
            if not carried.dropped:
                raise NativertError(
                    f"{request.method} {request.target}: {e}", code=Code.NO_AGENT
                ) from None
        finally:
            with self._mutex:
                self._carried.pop(request.id, None)
            connection.close()

    def _watch(self) -> None:
        """Give up what nobody has asked after for long: its sender is gone."""
        while not self._closed.wait(_LOOK_S):
            since = time.monotonic() - _SILENCE_S
            with self._mutex:
                forgotten = [each for each in self._carried.values() if each.heard < since]
            for each in forgotten:
                each.drop()


def _found(row: Row, *, exact: bool) -> Found:
    move = None if row.corrupt else moves.decode(row.moving)
    return Found(
        instance=row.uuid,
        name=row.name,
        exact=exact,
        lands=move is not None and not move.leaves,
    )
