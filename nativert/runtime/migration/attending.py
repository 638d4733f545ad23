"""What somebody who is always there does for moves that have lost a message or a process.

The source of a committed move tells the destination until that answers; a destination that has
heard nothing for long asks what has become of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nativert.errors import Code, NativertError
from nativert.runtime.migration.destination import Destination
from nativert.runtime.migration.messages import Kind, Message, Transport
from nativert.runtime.migration.source import Mover, Patience
from nativert.store import moves
from nativert.store.moves import Move, Phase

if TYPE_CHECKING:
    from nativert.runtime.node import Node
    from nativert.store.durable import Row

# One instance must not keep the others waiting.
_COMMIT_S: Final = 2.0


class Attendant:
    """Looks after the moves of one node; one thread at a time calls `round`."""

    def __init__(
        self,
        node: Node,
        transport: Transport,
        destination: Destination,
        *,
        patience: Patience | None = None,
    ) -> None:
        patience = patience or Patience()
        self._node = node
        self._transport = transport
        self._destination = destination
        self._patience = patience
        quick = Patience(
            answer_s=min(patience.answer_s, _COMMIT_S), commit_s=min(patience.commit_s, _COMMIT_S)
        )
        self._mover = Mover(node, transport, patience=quick)

    def round(self) -> None:
        """Look at each move once, and do what can be done now."""
        for row in self._node.context.store.rows():
            move = None if row.corrupt else moves.decode(row.moving)
            if move is None:
                continue
            try:
                self._attend(row, move)
            except (NativertError, OSError):
                continue  # The other node is not there, or has nothing to say yet.

    def _attend(self, row: Row, move: Move) -> None:
        if move.phase is Phase.COMMITTED:
            self._mover.deliver(row.uuid)
        elif move.leaves or move.phase is Phase.STARTING:
            self._node.look(row.uuid)
        elif self._destination.silent_s(row.uuid) > self._patience.silence_s:
            self._inquire(row, move)

    def _inquire(self, row: Row, move: Move) -> None:
        question = Message(
            kind=Kind.INQUIRE,
            instance=row.uuid,
            epoch=move.epoch,
            sender=self._node.identity.id,
        )
        try:
            said = self._transport.ask(move.peer, question, timeout_s=self._patience.answer_s)
        except NativertError as e:
            if e.code is Code.BUSY:
                self._destination.heard(row.uuid)  # It goes on.
            else:
                self._destination.give_up(row.uuid)
            return
        if (said.instance, said.epoch, said.sender) == (row.uuid, move.epoch, move.peer):
            self._destination.answer(said)
