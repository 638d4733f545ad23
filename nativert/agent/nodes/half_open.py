"""Connections to other nodes that are open at one end only.

Zenoh 1.10 takes the link by which a node returns into the connection before, if it comes within
a millisecond of that one's end: as when an agent goes on that stood still (a suspended machine,
SIGSTOP) for longer than the lease. The other end then takes it for a new connection, and is not
told again what is alive, subscribed and served here: it sees a peer without a node. Nothing but
a new session at that end mends it, and Zenoh's can be had by a new start only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from nativert.agent.logs import LOGGER
from nativert.plugin.connector import Closing
from nativert.plugin.zenoh_connector import ZenohConnector

_SESSIONS: Final = "/nativert/sessions/"
# What a new peer has declared is here within milliseconds; on a machine that is short of
# everything within seconds.
_LOOK_S: Final = 2.0
_LOOKS: Final = 3


class HalfOpen:
    """Tells every node of this session, and calls *found* once if one has stopped telling here.

    Sessions of which nothing was ever told here are none of its affair: clients, programs of
    others.
    """

    def __init__(self, connector: ZenohConnector, found: Callable[[], None]) -> None:
        self._connector = connector
        self._found = found
        self._told: set[str] = set()
        self._silent: dict[str, int] = {}
        self._alive: set[str] = set()
        self._closed = threading.Event()
        self._watching: Closing | None = None
        self._telling: Closing | None = None

    def start(self) -> None:
        """Tell of this session as long as it is open, and look at the others."""
        self._watching = self._connector.watch(f"{_SESSIONS}*", self._note)
        own = _SESSIONS + str(self._connector.session.info.zid())
        # Kept to the end: Zenoh takes a token back that nobody holds.
        self._telling = self._connector.liveliness(own)
        threading.Thread(target=self._watch, name="half-open", daemon=True).start()

    def close(self) -> None:
        """Look no longer; the session is told of until it is closed."""
        self._closed.set()
        if self._watching is not None:
            self._watching.close()

    def look(self, peers: set[str]) -> bool:
        """Return whether one of *peers*, ids of sessions, was silent at each of the last looks."""
        silent = peers & self._told - self._alive
        self._silent = {peer: self._silent.get(peer, 0) + 1 for peer in silent}
        return any(looks >= _LOOKS for looks in self._silent.values())

    def _note(self, path: str, alive: bool) -> None:
        peer = path.removeprefix(_SESSIONS)
        if alive:
            self._told.add(peer)
            self._alive.add(peer)
        else:
            self._alive.discard(peer)

    def _watch(self) -> None:
        info = self._connector.session.info
        while not self._closed.wait(_LOOK_S):
            if self.look({str(peer) for peer in info.peers_zid()}):
                LOGGER.error(
                    "a connection to another node is open at its end only, and brings nothing "
                    "here: this agent starts anew"
                )
                self._found()
                return
