"""The server: its sockets, who may connect, and the bounds of everything."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from nativert.agent import faults
from nativert.agent.api import elsewhere, peers, tls
from nativert.agent.api.answers import CORE, refusal
from nativert.agent.api.core import Core, busy
from nativert.agent.api.routes import ROUTES
from nativert.agent.config import Api
from nativert.agent.logs import LOGGER
from nativert.errors import Code, NativertError
from nativert.launcher import protocol

_BACKLOG = 1024
_MAX_FIELDS = 64
_CLOSING_S = 2.0
_CLIENT_GONE = 499
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def group_id(group: str | int | None) -> int | None:
    """Return the number of a configured group; NativertError(DESCRIPTOR) if there is none."""
    if group is None or isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise NativertError(f"api.group: {group}: no such group", code=Code.DESCRIPTOR) from None


class Server:
    """Serves one node on its Unix socket, and on TCP where that is configured."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._api: Api = core.config.api
        self._gid = group_id(self._api.group)
        self._listening: list[asyncio.Server] = []
        self._path: Path | None = None
        self._runner: web.AppRunner | None = None
        self._attended: set[RequestHandler] = set()
        self._patience: dict[RequestHandler, float] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to listen; OSError, NativertError."""
        app = web.Application(
            middlewares=[self._bounded, _told, elsewhere.passed_on],
            client_max_size=self._api.max_body_bytes,
        )
        app[CORE] = self._core
        for route in ROUTES:
            app.router.add_route(route.method, route.path, route.handler)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            # A handler ends with its client: nobody waits for the answer any more.
            handler_cancellation=True,
            keepalive_timeout=self._api.client_timeout_s,
            max_headers=_MAX_FIELDS,
            auto_decompress=False,
            shutdown_timeout=_CLOSING_S,
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._listening.append(
            await loop.create_unix_server(
                self._connection, sock=self._unix_socket(), backlog=_BACKLOG
            )
        )
        if self._api.tcp is not None:
            host, port = self._api.tcp.endpoint
            secured = tls.context(self._api.tcp)
            made: Callable[[], asyncio.BaseProtocol] = self._connection
            if secured is not None:
                made = tls.Handshakes(secured, most=self._api.max_requests, then=made)
            self._listening.append(await loop.create_server(made, host, port, backlog=_BACKLOG))
        self._look_for_idlers()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The TCP addresses that are served."""
        names = [s.getsockname() for server in self._listening for s in server.sockets]
        return [(name[0], name[1]) for name in names if isinstance(name, tuple)]

    async def stop(self) -> None:
        """Take the socket away, let requests finish for a moment, then cut them off."""
        if self._sweep is not None:
            self._sweep.cancel()
        for server in self._listening:
            server.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._runner is not None:
            await self._runner.cleanup()

    def _unix_socket(self) -> socket.socket:
        path = self._core.context.paths.api_socket
        # Ours to remove: we hold the agent's lock, so nobody serves on it.
        path.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Nobody else may connect before owner and mode are what they should be.
            before = os.umask(0o177)
            try:
                sock.bind(protocol.address(directory, path.name))
            finally:
                os.umask(before)
            os.chown(path, -1, self._gid if self._gid is not None else os.getegid())
            os.chmod(path, 0o660)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(directory)
        self._path = path
        return sock

    def _connection(self) -> asyncio.BaseProtocol:
        server = self._server
        if len(server.connections) >= self._api.max_requests:
            return _Full()
        return server()

    @property
    def _server(self) -> web.Server:
        assert self._runner is not None
        assert self._runner.server is not None
        return self._runner.server

    def _look_for_idlers(self) -> None:
        """Close connections on which no whole request came for longer than a client may take."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        idle = {
            connection: self._patience.get(connection, now)
            for connection in self._server.connections
            if connection not in self._attended
        }
        for connection, since in idle.items():
            if now - since >= self._api.client_timeout_s:
                connection.force_close()
        self._patience = idle
        self._sweep = loop.call_later(self._api.client_timeout_s / 2, self._look_for_idlers)

    @web.middleware
    async def _bounded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        core = self._core
        if core.requests >= self._api.max_requests:
            return refusal(busy(f"{core.requests} requests are being served already"))
        core.requests += 1
        self._attended.add(request.protocol)
        try:
            try:
                self._admit(request)
                response = await handler(request)
            except NativertError as e:
                response = refusal(e)
            except ConnectionError:
                # The client left in the middle of a stream; nobody reads this.
                response = web.Response(status=_CLIENT_GONE)
            route = request.match_info.route.resource
            key = (route.canonical if route is not None else "", response.status)
            core.answered[key] = core.answered.get(key, 0) + 1
            await self._send(request, response)
            return response
        finally:
            self._attended.discard(request.protocol)
            self._patience[request.protocol] = asyncio.get_running_loop().time()
            core.requests -= 1

    def _admit(self, request: web.Request) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        if "Origin" in request.headers:
            # A page in a browser that may reach the port asks in the name of its user.
            raise NativertError("browsers are not served", code=Code.PERMISSION)
        peers.check(
            transport.get_extra_info("socket"), transport.get_extra_info("ssl_object"), self._gid
        )

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        if not isinstance(response, web.Response):
            return

        async def send() -> None:
            await response.prepare(request)
            await response.write_eof()

        try:
            await asyncio.wait_for(send(), self._api.client_timeout_s)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()


@web.middleware
async def _told(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Turn what a handler raises into an answer."""
    try:
        return await handler(request)
    except web.HTTPException as e:
        code = {404: Code.NOT_FOUND, 403: Code.PERMISSION}.get(e.status, Code.USAGE)
        reason = e.reason.lower()
        return refusal(
            NativertError(f"{request.method} {request.path}: {reason}", code=code), status=e.status
        )
    except ConnectionError:
        raise
    except (NativertError, OSError) as e:
        error = faults.known(e)
        assert error is not None
        return refusal(error)
    except Exception:  # noqa: BLE001 (told in the log, and nothing else ends for it)
        LOGGER.exception("fault while serving %s %s", request.method, request.path)
        return refusal(NativertError("a fault of nativert: the agent's log has more"))


class _Full(asyncio.Protocol):
    """Turns away a connection that is one too many, once it has asked something."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        # Who asks nothing does not stay either.
        self._close = asyncio.get_running_loop().call_later(_CLOSING_S, transport.abort)

    def data_received(self, _data: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
            b"Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
        self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self._close.cancel()
