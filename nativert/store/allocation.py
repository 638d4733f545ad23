"""Addresses, link numbers and id ranges of one node, given out in the store's transaction."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Final

from nativert.errors import Code, NativertError
from nativert.store.pools import BLOCK_RANGES, range_start

if TYPE_CHECKING:
    import sqlite3

# A link name is nv, 6 digits of the tag, this number: at most 15 bytes (IFNAMSIZ - 1).
MAX_LINK: Final = 9_999_999


def take_address(
    connection: sqlite3.Connection,
    subnet: IPv4Network,
    instance: str,
    interface: str,
    wanted: str | None = None,
) -> None:
    """Give *interface* an address: a never used one, else the least recently released.

    *wanted* is taken where it is free, of this subnet or another. Network, gateway (the first
    host) and broadcast are not given out, nor what is lent. Raises
    NativertError(ADDRESS_EXHAUSTED).
    """
    first = int(subnet.network_address) + 2
    last = int(subnet.broadcast_address) - 1
    if wanted is not None:
        number = int(IPv4Address(wanted))
        usable = first <= number <= last or IPv4Address(wanted) not in subnet
        if usable and _is_free(connection, number, instance):
            _give(connection, number, instance, interface)
            return
    # Fresh addresses are given out upwards, so all above the highest known are unused.
    highest = connection.execute(
        "SELECT max(address) FROM addresses WHERE address BETWEEN ? AND ?", (first, last)
    ).fetchone()[0]
    address = first if highest is None else highest + 1
    if address > last:
        row = connection.execute(
            "SELECT address FROM addresses WHERE instance IS NULL AND lent IS NULL"
            " AND address BETWEEN ? AND ? ORDER BY released, address LIMIT 1",
            (first, last),
        ).fetchone()
        if row is None:
            # One that was wanted may be far above those that were given out in their order.
            taken = {
                known
                for (known,) in connection.execute(
                    "SELECT address FROM addresses WHERE address BETWEEN ? AND ?", (first, last)
                )
            }
            row = next(((free,) for free in range(first, last + 1) if free not in taken), None)
        if row is None:
            raise NativertError(
                f"no address left in {subnet}: all {last - first + 1} are in use",
                code=Code.ADDRESS_EXHAUSTED,
                hint="undefine instances that are not needed any more",
            )
        address = row[0]
    _give(connection, address, instance, interface)


def _is_free(connection: sqlite3.Connection, address: int, instance: str) -> bool:
    holder = connection.execute(
        "SELECT instance, lent FROM addresses WHERE address = ?", (address,)
    ).fetchone()
    return holder is None or (holder[0] is None and holder[1] in (None, instance))


def _give(connection: sqlite3.Connection, address: int, instance: str, interface: str) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO addresses (address, instance, interface) VALUES (?, ?, ?)",
        (address, instance, interface),
    )


def release_addresses(
    connection: sqlite3.Connection, instance: str, *, lend: Collection[str] = ()
) -> None:
    """Put the addresses of *instance* at the end of the queue for reuse.

    Those that it takes along to another node, *lend*, stay out of it until they are recalled.
    """
    for address in lend:
        connection.execute(
            "UPDATE addresses SET lent = instance WHERE instance = ? AND address = ?",
            (instance, int(IPv4Address(address))),
        )
    connection.execute(
        "UPDATE addresses SET instance = NULL, interface = NULL, released = ? WHERE instance = ?",
        (_count(connection, "release"), instance),
    )


def recall_address(connection: sqlite3.Connection, address: str, instance: str) -> None:
    """Put an address that was lent to *instance* at the end of the queue for reuse."""
    connection.execute(
        "UPDATE addresses SET lent = NULL, released = ? WHERE lent = ? AND address = ?",
        (_count(connection, "release"), instance, int(IPv4Address(address))),
    )


def take_link(connection: sqlite3.Connection, instance: str, interface: str, position: int) -> None:
    """Give *interface* a number for its host link that was not used for as long as possible.

    The kernel may still know the old link of a name for a while after its deletion.
    """
    while True:
        number = (_count(connection, "link") - 1) % MAX_LINK + 1
        if not connection.execute("SELECT 1 FROM links WHERE number = ?", (number,)).fetchone():
            break
    connection.execute(
        "INSERT INTO links VALUES (?, ?, ?, ?)", (number, instance, interface, position)
    )


def keep_interfaces(connection: sqlite3.Connection, instance: str, kept: Sequence[str]) -> None:
    """Release address and link of each interface of *instance* that is not *kept*."""
    known = connection.execute("SELECT interface FROM links WHERE instance = ?", (instance,))
    for (interface,) in known.fetchall():
        if interface not in kept:
            which = (instance, interface)
            connection.execute(
                "UPDATE addresses SET instance = NULL, interface = NULL, released = ?"
                " WHERE instance = ? AND interface = ?",
                (_count(connection, "release"), *which),
            )
            connection.execute("DELETE FROM links WHERE instance = ? AND interface = ?", which)


def place(connection: sqlite3.Connection, instance: str, interface: str, position: int) -> bool:
    """Have an interface at this place among the others; False if it is not there."""
    changed = connection.execute(
        "UPDATE links SET position = ? WHERE instance = ? AND interface = ?",
        (position, instance, interface),
    )
    return bool(changed.rowcount)


def free_range(connection: sqlite3.Connection, blocks: Sequence[int]) -> int:
    """Return the first host id of a free range of the node's *blocks*, cyclically.

    The range last released comes last, so that files which its instance left in a shared
    mount do not get a new owner soon. Raises NativertError(IDS_EXHAUSTED).
    """
    row = connection.execute("SELECT value FROM counters WHERE name = 'id-range'").fetchone()
    last = row[0] if row else -1
    starts = [range_start(block, n) for block in sorted(blocks) for n in range(BLOCK_RANGES)]
    following = bisect.bisect_right(starts, last)
    for start in itertools.chain(starts[following:], starts[:following]):
        taken = connection.execute("SELECT 1 FROM instances WHERE id_range = ?", (start,))
        if taken.fetchone() is None:
            break
    else:
        raise NativertError(
            f"no range of host ids left: all {len(starts)} of this node are in use",
            code=Code.IDS_EXHAUSTED,
            hint="undefine instances that are not needed any more",
        )
    connection.execute("INSERT OR REPLACE INTO counters VALUES ('id-range', ?)", (start,))
    return start


def _count(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute(
        "INSERT INTO counters VALUES (?, 1)"
        " ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
        (name,),
    ).fetchone()
    return int(row[0])
