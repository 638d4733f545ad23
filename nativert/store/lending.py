"""Addresses that travel with their instance: which are here, and which are lent to other nodes.

An address is of its home's pool for ever: that node gives it to nobody else while an instance has
it elsewhere.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import NamedTuple

from nativert.store import allocation, moves
from nativert.store.moves import Fences, Phase

# Not here yet: its source has the application.
_ARRIVING = (Phase.LANDING, Phase.HELD)


class Travelled(NamedTuple):
    """An address that is here by the migration *epoch*; by the one before if it is to leave."""

    address: str
    interface: str
    instance: str
    epoch: int


class Lending(Fences):
    """The part of the store that knows of addresses and moves."""

    def lent(self) -> list[tuple[str, str]]:
        """Return (address, instance) of what has gone to other nodes."""
        with self._reading() as connection:
            found = connection.execute(
                "SELECT address, lent FROM addresses WHERE lent IS NOT NULL ORDER BY address"
            ).fetchall()
        return [(str(IPv4Address(address)), str(instance)) for address, instance in found]

    def recall(self, address: str, instance: str) -> None:
        """Have an address again that *instance* does not need any more; safe twice."""
        with self._transaction() as connection:
            allocation.recall_address(connection, address, instance)

    def travelled(self) -> list[Travelled]:
        """Return the addresses here of instances that have moved."""
        with self._reading() as connection:
            found = connection.execute(
                "SELECT addresses.address, addresses.interface, addresses.instance, moves.epoch,"
                " instances.moving FROM addresses"
                " JOIN instances ON instances.uuid = addresses.instance"
                " JOIN moves ON moves.instance = addresses.instance ORDER BY addresses.address"
            ).fetchall()
        here = []
        for address, interface, instance, epoch, text in found:
            move = moves.decode(text)
            if move is not None and move.phase in _ARRIVING:
                continue
            leaves = move is not None and move.leaves
            here.append(
                Travelled(str(IPv4Address(address)), interface, instance, int(epoch) - leaves)
            )
        return here
