"""The way of one request to another node, and of its answer back."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec

from nativert.agent.api.core import Core
from nativert.agent.nodes import messages
from nativert.agent.nodes.messages import Head, Piece, Request, Talk
from nativert.errors import Code, NativertError
from nativert.fdu.known import known

if TYPE_CHECKING:
    from nativert.agent.nodes.reaching import Nodes

# How often another node hears that its answer is still wanted, or after so many parts of it.
_BEAT_S: Final = 3.0
_BEAT_PARTS: Final = messages.WINDOW // 4


def others(core: Core) -> Nodes:
    """Return the way to other nodes; NativertError NO_AGENT without any."""
    if core.nodes is None:
        raise NativertError(
            "this node's agent knows no others",
            code=Code.NO_AGENT,
            hint="it needs a [zenoh] section in its configuration",
        )
    return core.nodes


class Passage:
    """A question to another node's API, for the length of an `async with`.

    NativertError NO_AGENT where the node goes away before it has answered.
    """

    def __init__(self, core: Core, node: str, question: Request | Talk) -> None:
        self._core = core
        self._nodes = others(core)
        self._node = node
        self._question = question
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._due = asyncio.Event()
        self._taken = 0
        self._given = 0
        self._ended = False

    @classmethod
    def request(
        cls,
        core: Core,
        node: str,
        method: str,
        target: str,
        *,
        accept: str = "",
        body: bytes | None = b"",
    ) -> Self:
        """Have *node* answer a request; a *body* of None is to be `give`n."""
        question = Request(
            id=str(uuid.uuid4()),
            sender=others(core).id,
            method=method,
            target=target,
            accept=accept,
            body=body or b"",
            given=body is None,
        )
        return cls(core, node, question)

    @classmethod
    def talk(cls, core: Core, node: str, target: str) -> Self:
        """Have *node* open a WebSocket."""
        return cls(core, node, Talk(id=str(uuid.uuid4()), sender=others(core).id, target=target))

    async def __aenter__(self) -> Self:
        await self._core.others.call(
            partial(self._nodes.send, self._node, self._question, took=self._took, over=self._over)
        )
        self._beating = asyncio.ensure_future(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        if not self._ended:
            self._core.others.submit(partial(self._nodes.drop, self._node, self._question.id))

    def _took(self, _node: str, part: bytes) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: the agent ends.
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)

    def _over(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._parts.put_nowait, None)

    async def ready(self) -> None:
        """Wait until it takes what is given."""
        await self._next(messages.READY)

    async def give(self, data: bytes = b"", *, text: bool = False, last: bool = False) -> bool:
        """Give the next of a body, or a message, once there is room; False if none is wanted.

        NativertError NO_AGENT where the node does not say.
        """
        self._given += 1
        piece = Piece(id=self._question.id, number=self._given, data=data, text=text, last=last)
        answer: asyncio.Future[bytes] = self._loop.create_future()

        def settle(part: bytes) -> None:
            if not answer.done():
                answer.set_result(part)

        def told(part: bytes) -> None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(settle, part)

        # Without a thread: it may take as long as a program inside reads nothing.
        send = partial(
            self._nodes.send, self._node, piece,
            took=lambda _, part: told(part), over=lambda: told(b""),
        )  # fmt: skip
        await self._core.others.call(send)
        if not (said := await answer):
            raise self._lost()
        return said == b"true"

    async def head(self) -> Head:
        """Return how the answer begins."""
        _, data = await self._next(messages.HEAD)
        return msgspec.json.decode(data, type=known(Head))

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the rest of the answer."""
        while not self._ended:
            _, data = await self._next(messages.DATA)
            if data:
                yield data

    async def messages(self) -> AsyncIterator[tuple[bool, bytes]]:
        """Yield each message of a WebSocket, and whether it is text."""
        while not self._ended:
            kind, data = await self._next(messages.TEXT, messages.DATA)
            if not self._ended:
                yield kind == messages.TEXT, data

    async def _next(self, *wanted: bytes) -> tuple[bytes, bytes]:
        part = await self._parts.get()
        if part is None:
            self._ended = True
            raise self._lost()
        self._taken += 1
        if self._taken % _BEAT_PARTS == 0:
            self._due.set()
        kind, data = part[:1], part[1:]
        self._ended = kind == messages.END
        if not self._ended and kind not in wanted:
            raise NativertError(f"node {self._node}: not an answer of an agent: {part[:80]!r}")
        return kind, data

    def _lost(self) -> NativertError:
        return NativertError(
            f"node {self._nodes.name(self._node)} went away before it had answered",
            code=Code.NO_AGENT,
            hint="nativert node ls tells which nodes are there",
        )

    async def _beat(self) -> None:
        missed = 0
        while missed < 2:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), _BEAT_S)
            self._due.clear()
            still = partial(self._nodes.taken, self._node, self._question.id, self._taken)
            missed = 0 if await self._core.others.call(still) else missed + 1
        # It is there, and knows nothing of the request any more.
        self._parts.put_nowait(None)
