"""A WebSocket of this node's API for another node's client: messages go both ways as they are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING

import msgspec

from nativert.agent import faults
from nativert.agent.nodes import messages
from nativert.agent.nodes.carried import Carried
from nativert.agent.wire import Connection
from nativert.errors import NativertError

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


def talk(connection: Connection, target: str, headers: Mapping[str, str], carried: Carried) -> None:
    """Open it, and hand messages on until one side ends it; OSError."""
    # Loaded where another node asks for it.
    from nativert.agent.websocket import websocket

    carried.send(messages.READY)
    try:
        with websocket(connection, target, headers) as socket:
            giving = Thread(target=_give, args=(socket, carried), name="talk", daemon=True)
            giving.start()
            try:
                for message in socket:
                    if isinstance(message, str):
                        carried.send(messages.TEXT + message.encode())
                    else:
                        carried.send(messages.DATA + message)
            finally:
                carried.finish()
    except NativertError as e:
        carried.send(messages.TEXT + msgspec.json.encode({"error": faults.encode(e)}))
    carried.send(messages.END)


def _give(socket: ClientConnection, carried: Carried) -> None:
    from websockets.exceptions import ConnectionClosed

    with suppress(ConnectionClosed):
        while (piece := carried.next()) is not None:
            socket.send(piece.data.decode() if piece.text else piece.data)
