"""A connection to an init that tells when the application or init itself has ended."""

from __future__ import annotations

from nativert.launcher import protocol
from nativert.launcher.client import Channel

_CONNECT_TIMEOUT_S = 2.0


class Follow:
    """One init, followed without waiting for it; ends with it."""

    def __init__(self, channel: Channel) -> None:
        channel.sock.setblocking(False)
        self._channel = channel
        self._run: int | None = None

    def fileno(self) -> int:
        """Return the descriptor to poll for input; -1 once it is closed."""
        return self._channel.sock.fileno()

    def run(self, number: int) -> None:
        """Ask to be told of the end of this run; OSError if init is gone."""
        if self._run != number:
            protocol.send(self._channel.sock, {"verb": "status", "follow": True})
            self._run = number

    def receive(self) -> bool:
        """Read what has come; return whether something may have ended. EOFError, OSError."""
        ended = False
        while True:
            try:
                message, _ = protocol.receive(self._channel.sock)
            except BlockingIOError:
                return ended
            ended = ended or message.get("event") == "end" or message.get("state") == "idle"

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
