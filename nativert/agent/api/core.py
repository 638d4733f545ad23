"""What the handlers of the API share: the node, threads for what blocks, and the order of work.

The operations on one instance wait for each other here, without a thread each; in what order they
came they go. Different instances never wait for each other as long as there are threads, and a
short operation never for one that fetches, stops or waits: those have threads of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from nativert.agent.config import Config
from nativert.agent.monitor import Sampler
from nativert.errors import Code, NativertError
from nativert.runtime.context import Context
from nativert.runtime.node import Node
from nativert.runtime.pool import Pool

if TYPE_CHECKING:
    from nativert.agent.nodes.reaching import Nodes

_T = TypeVar("_T")
_QUICK_THREADS = 8
_SLOW_THREADS = 32
_OTHERS_THREADS = 32


def busy(what: str) -> NativertError:
    """Return the refusal of what would exceed a bound."""
    return NativertError(what, code=Code.BUSY, hint="try again in a moment")


class Core:
    """One node behind the API, and where *nodes* is given the way to others; of one event loop."""

    def __init__(
        self,
        node: Node,
        context: Context,
        config: Config,
        sampler: Sampler,
        nodes: Nodes | None = None,
    ) -> None:
        self.node = node
        self.context = context
        self.config = config
        self.sampler = sampler
        self.nodes = nodes
        self.quick = Pool("api-quick", _QUICK_THREADS)
        self.slow = Pool("api-slow", _SLOW_THREADS)
        # A start may wait for what it depends on, whose stop must not wait for it.
        self.starting = Pool("api-start", _SLOW_THREADS)
        self.others = Pool("api-others", _OTHERS_THREADS)
        self.streaming = Pool("api-stream", config.api.max_streams)
        self.began = time.monotonic()
        self.streams = 0
        self.requests = 0
        self.answered: dict[tuple[str, int], int] = {}
        self.ending = asyncio.Event()
        self._queues: dict[str, tuple[asyncio.Lock, list[object]]] = {}
        self._running: set[asyncio.Task[object]] = set()

    def uuid(self, ref: str) -> str:
        """Return the UUID of a reference; UnknownInstanceError, AMBIGUOUS."""
        return self.context.store.find(ref).uuid

    async def ask(self, job: Callable[[], _T]) -> _T:
        """Answer a question in a thread."""
        return await self.quick.call(job)

    async def operate(
        self, ref: str, job: Callable[[str], _T], *, pool: Pool, wanted: Callable[[], bool]
    ) -> _T:
        """Have *pool* call *job* with the UUID, after the instance's operations that came before.

        A client that goes away takes its turn with it while *wanted* says so; what has begun is
        carried out.
        """
        uuid = await self.ask(lambda: self.uuid(ref))
        task = asyncio.ensure_future(self._in_turn(uuid, job, pool=pool, wanted=wanted))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        # Shielded: the turn lasts as long as the thread is at work, whoever still listens.
        return await asyncio.shield(task)

    async def _in_turn(
        self, uuid: str, job: Callable[[str], _T], *, pool: Pool, wanted: Callable[[], bool]
    ) -> _T:
        with self._queue(uuid) as turn:
            async with turn:
                if not wanted():
                    raise NativertError("the client went away before its turn")
                return await pool.call(lambda: job(uuid))

    @contextmanager
    def _queue(self, uuid: str) -> Iterator[asyncio.Lock]:
        lock, users = self._queues.setdefault(uuid, (asyncio.Lock(), []))
        me = object()
        users.append(me)
        try:
            yield lock
        finally:
            users.remove(me)
            if not users:
                del self._queues[uuid]

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count an answer that may last; NativertError(BUSY) where there are too many."""
        if self.streams >= self.config.api.max_streams:
            raise busy(f"{self.streams} streams are open already")
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    async def settled(self, timeout_s: float) -> bool:
        """Wait for the operations that are under way; False if some take longer."""
        if not self._running:
            return True
        _, pending = await asyncio.wait(set(self._running), timeout=timeout_s)
        return not pending
