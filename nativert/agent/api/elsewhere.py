"""What concerns other nodes: which there are, and requests that one of them carries out.

A request goes to another node where it names one (the header `Nativert-Node`, or NODE/NAME for an
instance), or where no instance here has the reference and one there has. What is here is never
looked for elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote, unquote

import msgspec
from aiohttp import web

from nativert.agent import faults
from nativert.agent.api.answers import CORE, Stream, ok
from nativert.agent.api.core import Core
from nativert.agent.api.messages import Everywhere, KnownNode
from nativert.agent.nodes import messages
from nativert.agent.nodes.messages import Head, Summary
from nativert.agent.nodes.serving import SENDER
from nativert.agent.wire import NODE
from nativert.errors import Code, NativertError, UnknownInstanceError
from nativert.fdu.known import known
from nativert.runtime.views import Instance

if TYPE_CHECKING:
    from nativert.agent.nodes.reaching import Nodes

_EXEC: Final = "/v1/instances/{ref}/exec"
_LIST: Final = "/v1/instances"
# How often another node hears that its answer is still wanted, or after so many parts of it.
_BEAT_S: Final = 3.0
_BEAT_PARTS: Final = messages.WINDOW // 4
_LIST_S: Final = 5.0
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Passage:
    """A request that another node carries out, for the length of an `async with`.

    NativertError NO_AGENT where the node goes away before it has answered.
    """

    def __init__(
        self,
        core: Core,
        node: str,
        method: str,
        target: str,
        *,
        accept: str = "",
        body: bytes = b"",
    ) -> None:
        self._core = core
        self._nodes = _nodes(core)
        self._node = node
        self._send = partial(
            self._nodes.send, node, method, target, accept=accept, body=body,
            took=self._took, over=self._over,
        )  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._due = asyncio.Event()
        self._taken = 0
        self._ended = False

    async def __aenter__(self) -> Self:
        self._id = await self._core.others.call(self._send)
        self._beating = asyncio.ensure_future(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        if not self._ended:
            self._core.others.submit(partial(self._nodes.drop, self._node, self._id))

    def _took(self, _node: str, part: bytes) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: the agent ends.
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)

    def _over(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._parts.put_nowait, None)

    async def head(self) -> Head:
        """Return how the answer begins."""
        return msgspec.json.decode(await self._next(messages.HEAD), type=known(Head))

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the rest of the answer."""
        while not self._ended:
            data = await self._next(messages.DATA)
            if data:
                yield data

    async def _next(self, wanted: bytes) -> bytes:
        part = await self._parts.get()
        if part is None:
            self._ended = True
            raise NativertError(
                f"node {self._nodes.name(self._node)} went away before it had answered",
                code=Code.NO_AGENT,
                hint="nativert node ls tells which nodes are there",
            )
        self._taken += 1
        if self._taken % _BEAT_PARTS == 0:
            self._due.set()
        self._ended = part[:1] == messages.END
        if not self._ended and part[:1] != wanted:
            raise NativertError(f"node {self._node}: not an answer of an agent: {part[:80]!r}")
        return b"" if self._ended else part[1:]

    async def _beat(self) -> None:
        missed = 0
        while missed < 2:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), _BEAT_S)
            self._due.clear()
            still = partial(self._nodes.taken, self._node, self._id, self._taken)
            missed = 0 if await self._core.others.call(still) else missed + 1
        # It is there, and knows nothing of the request any more.
        self._parts.put_nowait(None)


@web.middleware
async def passed_on(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Have another node carry out what is meant for one."""
    core = request.app[CORE]
    ref = request.match_info.get("ref")
    node = unquote(request.headers.get(NODE, ""))
    if SENDER in request.headers:
        return await handler(request)
    if not node and ref and "/" in ref:
        node, _, ref = ref.partition("/")
        request.match_info["ref"] = ref
    if node:
        if core.nodes is None and node not in (core.context.name, core.context.identity.id):
            _nodes(core)
        id_ = await core.others.call(partial(core.nodes.resolve, node)) if core.nodes else ""
        if core.nodes is not None and id_ != core.nodes.id:
            return await _pass_on(request, id_, ref)
        return await handler(request)
    try:
        return await handler(request)
    except UnknownInstanceError as e:
        if core.nodes is None or ref is None or e.instance != ref:
            raise
        owner = await core.others.call(partial(core.nodes.owner, ref))
        return await _pass_on(request, owner.node, owner.instance)


def _nodes(core: Core) -> Nodes:
    if core.nodes is None:
        raise NativertError(
            "this node's agent knows no others",
            code=Code.NO_AGENT,
            hint="it needs a [zenoh] section in its configuration",
        )
    return core.nodes


async def _pass_on(request: web.Request, node: str, ref: str | None) -> web.StreamResponse:
    core = request.app[CORE]
    resource = request.match_info.route.resource
    if resource is None:
        raise web.HTTPNotFound
    if resource.canonical == _EXEC:
        raise refusal(core, node)
    if request.method == "PUT":
        name = core.nodes.name(node) if core.nodes else node
        raise NativertError(
            f"put: the instance is on node {name}, and files are put on its own node",
            code=Code.REQUIREMENTS,
            hint=f"call it on {name}",
        )
    target = request.rel_url.raw_path
    if ref is not None:
        target = resource.canonical.replace("{ref}", quote(ref, safe=""))
    if request.rel_url.raw_query_string:
        target += "?" + request.rel_url.raw_query_string
    body = await asyncio.wait_for(request.read(), core.config.api.client_timeout_s)
    accept = request.headers.get("Accept", "")
    async with Passage(core, node, request.method, target, accept=accept, body=body) as passage:
        head = await passage.head()
        if head.status == 204:
            async for _ in passage.body():
                pass
            return web.Response(status=head.status)
        stream = Stream(request, content_type=head.form, status=head.status)
        try:
            await stream.begin()
            async for data in passage.body():
                await stream.write(data)
        except NativertError as e:
            raise ConnectionResetError(str(e)) from e
        return await stream.end()


def refusal(core: Core, node: str) -> NativertError:
    """Return the refusal of a program's streams, which do not go over the network."""
    name = core.nodes.name(node) if core.nodes else node
    return NativertError(
        f"exec: the instance is on node {name}, and a program's streams stay on its node",
        code=Code.REQUIREMENTS,
        hint=f"call it on {name}",
    )


async def nodes(request: web.Request) -> web.Response:
    """List this node, and the others that it has seen."""
    core = request.app[CORE]
    return ok(await core.others.call(partial(_known, core)))


def _known(core: Core) -> list[KnownNode]:
    identity, now = core.context.identity, time.time()
    own = Summary(name=core.context.name, addresses=(), instances=len(core.context.store.rows()))
    own = core.nodes.summary() if core.nodes else own
    listed = [_row(identity.id, own, now, own=True)]
    for seen, told in core.nodes.all() if core.nodes else []:
        known = told or seen.summary
        row = _row(seen.id, known, now if seen.gone is None else seen.gone)
        listed.append(
            msgspec.structs.replace(
                row, alive=seen.gone is None, instances=told.instances if told else None
            )
        )
    return sorted(listed, key=lambda row: (row.name or "", row.uuid))


def _row(node: str, known: Summary | None, seen: float, *, own: bool = False) -> KnownNode:
    return KnownNode(
        uuid=node,
        name=known.name if known else None,
        own=own,
        alive=True,
        addresses=known.addresses if known else (),
        instances=known.instances if known else None,
        last_seen=seen,
    )


async def everywhere(request: web.Request) -> web.Response:
    """List the instances of all nodes that are there, this one's first."""
    core = request.app[CORE]
    others = core.nodes.there() if core.nodes else []
    own, answers = await asyncio.gather(
        core.ask(core.sampler.rows), asyncio.gather(*(_listed(core, seen.id) for seen in others))
    )
    listed = Everywhere(instances=own, silent=[])
    for seen, rows in zip(others, answers, strict=True):
        if rows is None:
            listed.silent.append(seen.name)
        else:
            listed.instances.extend(rows)
    return ok(listed)


async def _listed(core: Core, node: str) -> list[Instance] | None:
    try:
        async with asyncio.timeout(_LIST_S), Passage(core, node, "GET", _LIST) as passage:
            head = await passage.head()
            data = b"".join([part async for part in passage.body()])
        if head.status != 200:
            raise faults.decode(msgspec.json.decode(data)["error"])
        rows: list[Instance] = msgspec.json.decode(data, type=known(list[Instance]))
    except (NativertError, TimeoutError, msgspec.DecodeError):
        return None
    _nodes(core).has(node, {row.instance: row.name for row in rows})
    return rows
