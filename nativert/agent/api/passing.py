"""What another node carries out for a client of this one: requests, and WebSockets."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from aiohttp import WSMsgType, web

from nativert.agent.api.answers import CORE, Stream, departure, pieces
from nativert.agent.api.passage import Passage
from nativert.agent.nodes.messages import CHUNK
from nativert.errors import NativertError


async def pass_on(request: web.Request, node: str, ref: str | None) -> web.StreamResponse:
    """Have *node* answer a request about its instance *ref*."""
    core = request.app[CORE]
    resource = request.match_info.route.resource
    if resource is None:
        raise web.HTTPNotFound
    target = request.rel_url.raw_path
    if ref is not None:
        target = resource.canonical.replace("{ref}", quote(ref, safe=""))
    if request.rel_url.raw_query_string:
        target += "?" + request.rel_url.raw_query_string
    # A file is never held as a whole.
    given = request.method == "PUT"
    body = None
    if not given:
        body = await asyncio.wait_for(request.read(), core.config.api.client_timeout_s)
    passage = Passage.request(
        core, node, request.method, target, accept=request.headers.get("Accept", ""), body=body
    )
    async with passage:
        if given:
            await _give(request, passage)
        return await _answer(request, passage)


async def _give(request: web.Request, passage: Passage) -> None:
    await passage.ready()
    async for piece in pieces(request):
        if not await passage.give(piece):
            return  # Refused: the answer says why.
    await passage.give(last=True)


async def _answer(request: web.Request, passage: Passage) -> web.StreamResponse:
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


async def relay(
    request: web.Request, socket: web.WebSocketResponse, node: str, target: str
) -> None:
    """Hand a client's messages on to *target* of *node*'s API, and what it says back."""
    async with Passage.talk(request.app[CORE], node, target) as passage:
        await passage.ready()
        giving = asyncio.ensure_future(_say(socket, passage))
        hearing = asyncio.ensure_future(_hear(socket, passage))
        left = asyncio.ensure_future(departure(request))
        try:
            await asyncio.wait((giving, hearing, left), return_when=asyncio.FIRST_COMPLETED)
            # Where nothing more is wanted, what is on its way still counts.
            if not hearing.done() and (left.done() or not giving.result()):
                raise ConnectionResetError("the client went away")
            await hearing
        finally:
            for task in (giving, hearing, left):
                task.cancel()
            await asyncio.gather(giving, hearing, left, return_exceptions=True)


async def _say(socket: web.WebSocketResponse, passage: Passage) -> bool:
    """Give what the client sends; False when it leaves, True when nothing more is wanted."""
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            wanted = await passage.give(message.data.encode(), text=True)
        else:
            wanted = await _in_pieces(message.data, passage)
        if not wanted:
            return True
    return False


async def _in_pieces(data: bytes, passage: Passage) -> bool:
    # The other node may take shorter messages than this one.
    for at in range(0, len(data), CHUNK):
        if not await passage.give(data[at : at + CHUNK]):
            return False
    return True


async def _hear(socket: web.WebSocketResponse, passage: Passage) -> None:
    async for text, data in passage.messages():
        if text:
            await socket.send_str(data.decode())
        else:
            await socket.send_bytes(data)
