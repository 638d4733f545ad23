"""Instances on their way between nodes: how far each is, and which migrations are over.

`Move` stands in the instance's own row while it is on its way. A `Fence` stays when the row
is gone: no message of that epoch, or of an older one, makes an instance run here again.
"""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING

import msgspec

from nativert.fdu.known import known
from nativert.store.journal import Journal
from nativert.store.paths import check_uuid

if TYPE_CHECKING:
    import sqlite3


class Phase(enum.Enum):
    """How far a migration is on this node; tests/model/migration.pml says what may follow."""

    PREPARING = "preparing"  # source: the application runs, the destination gets ready
    TAKE_OFF = "take-off"  # source: it is stopped, and its data travel
    COMMITTED = "committed"  # source: it never runs here again unless it is given back
    ABORTING = "aborting"  # source: it is to run here again
    LANDING = "landing"  # destination: configured, or about to be
    HELD = "held"  # destination: everything is here, and the source decides
    STARTING = "starting"  # destination: it is ours, and is to run


class Outcome(enum.Enum):
    """How the last migration went out for this node."""

    OPEN = "open"
    ABANDONED = "abandoned"
    GIVEN = "given"
    GIVEN_BACK = "given-back"
    LANDED = "landed"


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that is on its way; `peer` is the id of the other node."""

    epoch: int
    phase: Phase
    peer: str

    @property
    def leaves(self) -> bool:
        """Whether this node is the source."""
        return self.phase in _OF_SOURCE


_OF_SOURCE = (Phase.PREPARING, Phase.TAKE_OFF, Phase.COMMITTED, Phase.ABORTING)


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """The newest migration of an instance that this node took part in."""

    epoch: int
    outcome: Outcome
    peer: str


def encode(move: Move) -> str:
    """Return *move* as the row has it."""
    return msgspec.json.encode(move).decode()


def decode(text: str | None) -> Move | None:
    """Return the move of a row, None for one that is at home."""
    return None if text is None else msgspec.json.decode(text.encode(), type=known(Move))


def raise_fence(connection: sqlite3.Connection, instance: str, fence: Fence | None) -> None:
    """Note *fence* within the caller's transaction; an epoch never becomes smaller."""
    if fence is None:
        return
    connection.execute(
        "INSERT INTO moves (instance, epoch, outcome, peer, changed_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (instance) DO UPDATE SET epoch = excluded.epoch,"
        " outcome = excluded.outcome, peer = excluded.peer, changed_at = excluded.changed_at"
        " WHERE excluded.epoch >= moves.epoch",
        (instance, fence.epoch, fence.outcome.value, fence.peer, time.time()),
    )


class Fences(Journal):
    """The half of the store that outlives the instances."""

    def fence(self, uuid: str) -> Fence | None:
        """Return the newest migration of *uuid* here, None where there never was one."""
        with self._reading() as connection:
            found = connection.execute(
                "SELECT epoch, outcome, peer FROM moves WHERE instance = ?", (uuid,)
            ).fetchone()
        if found is None:
            return None
        return Fence(epoch=found[0], outcome=Outcome(found[1]), peer=found[2])

    def forbid(self, uuid: str, fence: Fence) -> None:
        """Note a migration that is over before it began here."""
        with self._transaction() as connection:
            raise_fence(connection, check_uuid(uuid), fence)
