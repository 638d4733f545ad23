"""A WebSocket of the API, on a connection to the agent's Unix socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from nativert.agent.wire import Connection, refused

_OPEN_S: Final = 30.0


@contextmanager
def websocket(
    connection: Connection, target: str, headers: Mapping[str, str]
) -> Iterator[ClientConnection]:
    """Open *target*; OSError when no agent serves or it goes away, NativertError if it refuses."""
    connection.connect()
    try:
        opening = connect(
            f"ws://node{target}",
            sock=connection.sock,
            additional_headers=headers,
            compression=None,
            proxy=None,
            open_timeout=_OPEN_S,
            # Of a peer that dies the kernel tells; one that is stopped is waited for.
            ping_interval=None,
            max_size=None,
        )
        with opening as socket:
            yield socket
    except InvalidStatus as e:
        raise refused(e.response.status_code, bytes(e.response.body or b"")) from None
    except (ConnectionClosed, InvalidHandshake) as e:
        raise ConnectionResetError(f"the agent went away: {e}") from None
