"""From requests to values and from values to answers."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from nativert.agent import faults
from nativert.agent.api.core import Core
from nativert.errors import Code, NativertError
from nativert.fdu.known import known
from nativert.runtime.data import CHUNK_BYTES

CORE = web.AppKey("core", Core)
NDJSON = "application/x-ndjson"
_T = TypeVar("_T")
_LOOK_S = 2.0


def ok(value: object, *, status: int = 200) -> web.Response:
    """Answer with one JSON document."""
    data = msgspec.json.encode(value)
    return web.Response(body=data, status=status, content_type="application/json")


def refusal(error: NativertError, *, status: int | None = None) -> web.Response:
    """Answer with an error."""
    headers = {"Retry-After": "1"} if error.code is Code.BUSY else None
    data = msgspec.json.encode({"error": faults.encode(error)})
    return web.Response(
        body=data,
        status=status or faults.status_of(error.code),
        content_type="application/json",
        headers=headers,
    )


def query(request: web.Request, kind: type[_T]) -> _T:
    """Return the query as a *kind*; NativertError(USAGE) names what is wrong with it."""
    values: dict[str, Any] = dict(request.query)
    try:
        return msgspec.convert(values, known(kind), strict=False)
    except msgspec.ValidationError as e:
        raise NativertError(f"query: {e}", code=Code.USAGE) from None


async def body(request: web.Request, kind: type[_T]) -> _T:
    """Return the body as a *kind*, an absent one as an empty object."""
    timeout_s = request.app[CORE].config.api.client_timeout_s
    try:
        data = await asyncio.wait_for(request.read(), timeout_s)
    except TimeoutError:
        raise NativertError(
            f"the body did not arrive within {timeout_s:g} s", code=Code.TIMEOUT
        ) from None
    try:
        return msgspec.json.decode(data or b"{}", type=known(kind))
    except msgspec.DecodeError as e:
        raise NativertError(f"body: {e}", code=Code.USAGE) from None


async def pieces(request: web.Request) -> AsyncIterator[bytes]:
    """Yield a body as it comes.

    NativertError(TIMEOUT) where nothing comes for the client's time, ConnectionResetError where it
    ends before its length.
    """
    timeout_s = request.app[CORE].config.api.client_timeout_s
    size = 0
    while True:
        try:
            piece = await asyncio.wait_for(request.content.read(CHUNK_BYTES), timeout_s)
        except TimeoutError:
            raise NativertError(
                f"nothing of the body arrived for {timeout_s:g} s", code=Code.TIMEOUT
            ) from None
        if not piece:
            break
        size += len(piece)
        yield piece
    if request.content_length not in (None, size):
        raise ConnectionResetError("the client went away before the end of the file")


def gone(request: web.Request) -> bool:
    """Tell whether the client of a request has closed its connection."""
    return request.transport is None or request.transport.is_closing()


async def departure(request: web.Request) -> None:
    """Return when the client of a request has closed its side, also while nothing of it is read."""
    transport = request.transport
    while transport is not None and not transport.is_closing():
        poll = select.poll()
        poll.register(transport.get_extra_info("socket"), select.POLLRDHUP)
        if poll.poll(0):
            return
        await asyncio.sleep(_LOOK_S)


class Stream:
    """An answer of lines, each written within the client's time."""

    def __init__(
        self, request: web.Request, *, content_type: str = NDJSON, status: int = 200
    ) -> None:
        self._request = request
        self._timeout_s = request.app[CORE].config.api.client_timeout_s
        self.response = web.StreamResponse(status=status, headers={"Content-Type": content_type})

    async def begin(self) -> None:
        """Send the head."""
        await self.response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        """Send *data*; ConnectionResetError when the client is gone or does not read."""
        try:
            await asyncio.wait_for(self.response.write(data), self._timeout_s)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client does not read") from None

    async def line(self, value: object) -> None:
        """Send one JSON object on a line of its own."""
        await self.write(msgspec.json.encode(value) + b"\n")

    async def end(self) -> web.StreamResponse:
        """Finish the answer."""
        await asyncio.wait_for(self.response.write_eof(), self._timeout_s)
        return self.response
