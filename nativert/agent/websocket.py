"""A WebSocket of the API, on the agent's Unix socket, for threads that block.

Both ways at once: who sends waits for room without keeping from the other what comes meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, Final, TypeVar

import aiohttp

from nativert.agent.wire import refused
from nativert.launcher import protocol

_OPEN_S: Final = 30.0
_T = TypeVar("_T")


class WebSocket:
    """Opened at *target* by construction; OSError, NativertError if the agent refuses."""

    def __init__(self, api: Path, target: str, headers: Mapping[str, str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._coming: Future[str | bytes | None] | None = None
        self._thread = Thread(target=self._loop.run_forever, name="websocket", daemon=True)
        self._thread.start()
        try:
            self._client, self._socket = self._call(_opened(api, target, headers)).result()
        except BaseException:
            self._end()
            raise

    def send(self, message: str | bytes) -> None:
        """Send a text or binary message, as soon as there is room; OSError."""
        if isinstance(message, str):
            self._call(self._socket.send_str(message)).result()
        else:
            self._call(self._socket.send_bytes(message)).result()

    def receive(self, timeout_s: float | None = None) -> str | bytes | None:
        """Return the next message, None after the last; TimeoutError loses nothing."""
        if self._coming is None:
            self._coming = self._call(self._next())
        message = self._coming.result(timeout_s)
        self._coming = None
        return message

    def abort(self) -> None:
        """Break it off; any thread may call, and who waits goes on."""
        sock = self._socket.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break it off, and release what it has."""
        self.abort()
        self._call(self._client.close()).result()
        self._end()

    def _call(self, job: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(job, self._loop)

    async def _next(self) -> str | bytes | None:
        message = await self._socket.receive()
        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            data: str | bytes = message.data
            return data
        return None

    def _end(self) -> None:
        self._call(_settled()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _settled() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _opened(
    api: Path, target: str, headers: Mapping[str, str]
) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    directory = os.open(api.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connector = aiohttp.UnixConnector(protocol.address(directory, api.name))
        client = aiohttp.ClientSession(connector=connector)
        try:
            opening = client.ws_connect(f"http://node{target}", headers=headers, max_msg_size=0)
            return client, await asyncio.wait_for(opening, _OPEN_S)
        except BaseException:
            await client.close()
            raise
    except aiohttp.WSServerHandshakeError as e:
        raise refused(e.status) from None
    except aiohttp.ClientError as e:
        raise ConnectionResetError(f"the agent went away: {e}") from None
    finally:
        os.close(directory)
