"""What every node of a network has: values by path, each as somebody has put it.

A deletion is a value too, so that a node that was away does not bring back what is gone.
"""

from __future__ import annotations

from typing import NamedTuple

from nativert.store.journal import Journal


class Entry(NamedTuple):
    """One value, JSON text; None for one that was deleted. `stamp` says when and by whom."""

    path: str
    stamp: str
    value: str | None


class Catalog(Journal):
    """The half of the store that nodes share."""

    def enter(self, entry: Entry) -> None:
        """Write an entry in place of the one before."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO catalog VALUES (?, ?, ?)", entry)

    def entry(self, path: str) -> Entry | None:
        """Return the entry of a path, also one that says that it was deleted."""
        with self._reading() as connection:
            found = connection.execute(
                "SELECT path, stamp, value FROM catalog WHERE path = ?", (path,)
            ).fetchone()
        return None if found is None else Entry(*found)

    def entries(self) -> list[Entry]:
        """Return every entry, deletions too, by path."""
        with self._reading() as connection:
            found = connection.execute("SELECT path, stamp, value FROM catalog ORDER BY path")
            return [Entry(*row) for row in found]
