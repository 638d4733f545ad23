"""Files below an instance's /data: listed, sent and received in pieces, never held as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from functools import partial

import msgspec
from aiohttp import web

from nativert.agent.api.answers import CORE, NDJSON, Stream, gone, ok, pieces, query
from nativert.agent.api.messages import Place, Placed
from nativert.errors import NativertError
from nativert.runtime.views import Entry

# How many lines are sent at once.
_BATCH = 256


async def ls(request: web.Request) -> web.StreamResponse:
    """List a directory."""
    asked = query(request, Place)
    found = request.app[CORE].node.ls(request.match_info["ref"], asked.path)
    return await _send(request, _lines(found), content_type=NDJSON)


async def get(request: web.Request) -> web.StreamResponse:
    """Send a file."""
    asked = query(request, Place)
    wanted = request.app[CORE].node.read_file(request.match_info["ref"], asked.path)
    return await _send(request, wanted, content_type="application/octet-stream")


async def put(request: web.Request) -> web.Response:
    """Receive a file, and put it in place once all of it is there."""
    asked = query(request, Placed)
    core = request.app[CORE]
    loop = asyncio.get_running_loop()
    coming = pieces(request)
    over = False

    async def receive() -> bytes:
        return await anext(coming, b"")

    def received() -> Iterator[bytes]:
        while not over:
            piece = asyncio.run_coroutine_threadsafe(receive(), loop).result()
            if not piece:
                return
            yield piece
        raise ConnectionResetError("the client went away before the end of the file")

    with core.stream():
        try:
            placed = await core.streaming.call(
                partial(
                    core.node.write_file,
                    request.match_info["ref"],
                    asked.path,
                    received(),
                    mode=int(asked.mode, 8),
                )
            )
        finally:
            over = True
    return ok(placed)


async def _send(
    request: web.Request, wanted: Iterable[bytes], *, content_type: str
) -> web.StreamResponse:
    core = request.app[CORE]
    loop = asyncio.get_running_loop()
    stream = Stream(request, content_type=content_type)
    begun = over = False

    async def send(piece: bytes) -> None:
        nonlocal begun
        if not begun:
            begun = True
            await stream.begin()
        await stream.write(piece)

    def relay() -> None:
        for piece in wanted:
            if over or gone(request):
                return
            # The thread waits for the client: what it has not read is not held in memory.
            asyncio.run_coroutine_threadsafe(send(piece), loop).result()

    with core.stream():
        try:
            await core.streaming.call(relay)
        except (NativertError, OSError) as e:
            if not begun or isinstance(e, ConnectionError):
                raise
            # Too late for a status: broken off, so that nobody takes it for the whole.
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError(f"broken off: {e}") from e
        finally:
            over = True
        if not begun:
            await stream.begin()
        return await stream.end()


def _lines(entries: Iterable[Entry]) -> Iterator[bytes]:
    lines: list[bytes] = []
    for entry in entries:
        lines.append(msgspec.json.encode(entry) + b"\n")
        if len(lines) >= _BATCH:
            yield b"".join(lines)
            lines.clear()
    if lines:
        yield b"".join(lines)
