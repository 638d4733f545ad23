"""Migration on a node that is in a network: others are found, and what is under way is tended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from nativert.agent import lending
from nativert.agent.logs import LOGGER
from nativert.errors import NativertError
from nativert.plugin.zenoh_transport import ZenohTransport
from nativert.runtime.migration.attending import Attendant
from nativert.runtime.migration.destination import Destination
from nativert.runtime.migration.source import Mover
from nativert.runtime.protocols import Progress

if TYPE_CHECKING:
    from nativert.agent.nodes.reaching import Nodes
    from nativert.plugin.zenoh_connector import ZenohConnector
    from nativert.runtime.node import Node

_ROUND_S: Final = 1.0
# An address that is lent is missed by nobody soon: a pool has a thousand.
_RECALL_ROUNDS: Final = 30


class Moves:
    """Satisfies `runtime.protocols.Moving`; from construction until closed it answers others.

    *arriving* is called, and must not block, when an instance of another node is to start here.
    """

    def __init__(
        self,
        node: Node,
        connector: ZenohConnector,
        nodes: Nodes,
        arriving: Callable[[], None] = lambda: None,
    ) -> None:
        self._node = node
        self._nodes = nodes
        destination = Destination(node, arriving)
        self._transport = ZenohTransport(connector.session, node.identity.id, destination.answer)
        self._mover = Mover(node, self._transport)
        self._attendant = Attendant(node, self._transport, destination)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="moves", daemon=True)
        self._thread.start()
        node.carry(self)

    def migrate(self, ref: str, peer: str, *, progress: Progress | None = None) -> dict[str, Any]:
        """Move an instance to the node with the id or name *peer*."""
        return self._mover.migrate(ref, self._nodes.resolve(peer), progress=progress)

    def close(self) -> None:
        """Move and answer no longer; what is under way is taken up by the next agent."""
        self._node.carry(None)
        self._stopped.set()
        self._transport.close()
        self._thread.join()

    def _tend(self) -> None:
        rounds = 0
        while not self._stopped.wait(_ROUND_S):
            rounds += 1
            try:
                self._attendant.round()
                if rounds % _RECALL_ROUNDS == 0:
                    own = self._node.identity.id
                    lending.recall(self._node.context.store, own, self._nodes.holds)
            except (NativertError, OSError) as e:
                LOGGER.warning("cannot look after what is moved: %s", e)
