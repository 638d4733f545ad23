"""A WebSocket of this node's API for another node's client: messages go both ways as they are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import msgspec

from nativert.agent import faults
from nativert.agent.nodes import messages
from nativert.agent.nodes.carried import Carried
from nativert.errors import NativertError

if TYPE_CHECKING:
    from nativert.agent.websocket import WebSocket


def talk(api: Path, target: str, headers: Mapping[str, str], carried: Carried) -> None:
    """Open it, and hand messages on until one side ends it; OSError."""
    # Loaded where another node asks for it.
    from nativert.agent.websocket import WebSocket

    carried.send(messages.READY)
    try:
        with (
            closing(WebSocket(api, target, headers)) as socket,
            carried.broken_off_by(socket.abort),
        ):
            giving = Thread(target=_give, args=(socket, carried), name="talk", daemon=True)
            giving.start()
            try:
                _hear(socket, carried)
            finally:
                carried.finish()
                socket.abort()
                giving.join()
    except NativertError as e:
        carried.send(messages.TEXT + msgspec.json.encode({"error": faults.encode(e)}))
    carried.send(messages.END)


def _hear(socket: WebSocket, carried: Carried) -> None:
    while (message := socket.receive()) is not None:
        if isinstance(message, str):
            carried.send(messages.TEXT + message.encode())
        else:
            carried.send(messages.DATA + message)


def _give(socket: WebSocket, carried: Carried) -> None:
    with suppress(OSError):
        while (piece := carried.next()) is not None:
            socket.send(piece.data.decode() if piece.text else piece.data)
