"""TLS with client certificates: who may speak at all, and how many may be on their way to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final

from nativert.agent.config import Tcp
from nativert.errors import Code, NativertError

_HANDSHAKE_S: Final = 10.0


def context(tcp: Tcp) -> ssl.SSLContext | None:
    """Return what the configured files make, None where there is no TLS; NativertError."""
    if tcp.certificate is None or tcp.client_ca is None:
        return None
    try:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.load_cert_chain(tcp.certificate, tcp.key)
        made.load_verify_locations(tcp.client_ca)
    except (OSError, ssl.SSLError) as e:
        raise NativertError(
            f"api.tcp: cannot load the certificates: {e}", code=Code.DESCRIPTOR
        ) from e
    made.verify_mode = ssl.CERT_REQUIRED
    return made


class Handshakes:
    """Those who have connected and shown no certificate yet: at most *most*, each for a while.

    asyncio's own handshake counts nobody, and whoever holds descriptors of ours needs none of his.
    """

    def __init__(
        self, context: ssl.SSLContext, *, most: int, then: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self.context = context
        self.most = most
        self.then = then
        self.pending: set[asyncio.Task[None]] = set()

    def __call__(self) -> asyncio.BaseProtocol:
        """Return the protocol of a new connection."""
        return _Handshake(self)


class _Handshake(asyncio.Protocol):
    def __init__(self, handshakes: Handshakes) -> None:
        self._handshakes = handshakes
        # What a client says at once comes in the moment before its protocol is told of it.
        self._early: list[bytes] = []
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        pending = self._handshakes.pending
        if len(pending) >= self._handshakes.most:
            transport.abort()
            return
        # What comes is the handshake's to read.
        transport.pause_reading()
        task = asyncio.ensure_future(self._shake(transport))
        pending.add(task)
        task.add_done_callback(pending.discard)

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._ended = True

    async def _shake(self, transport: asyncio.Transport) -> None:
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                self._handshakes.context,
                server_side=True,
                ssl_handshake_timeout=_HANDSHAKE_S,
                ssl_shutdown_timeout=_HANDSHAKE_S,
            )
        except (OSError, asyncio.CancelledError):
            transport.abort()  # No certificate, a wrong one, no TLS at all, or nothing.
            return
        if secured is None or self._ended:
            return
        served = self._handshakes.then()
        assert isinstance(served, asyncio.Protocol)
        secured.set_protocol(served)
        served.connection_made(secured)
        for data in self._early:
            served.data_received(data)
