"""Which nodes this one has seen, by their liveliness tokens; those that are gone too."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Final

from nativert.agent.nodes.messages import Summary

_REMEMBERED_S: Final = 86400.0
_KEPT: Final = 10_000


@dataclass(slots=True)
class Seen:
    """One other node; `gone` is when it was seen for the last time, seconds since the epoch.

    `instances` are those that it told of so far, names by UUID.
    """

    id: str
    gone: float | None = None
    summary: Summary | None = None
    instances: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called; its id as long as it has not told."""
        return self.summary.name if self.summary else self.id


class Known:
    """Every other node since this agent began, one that is gone for a day; of any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._seen: dict[str, Seen] = {}

    def note(self, node: str, *, here: bool) -> None:
        """Take down that a node is there, or is not any more."""
        with self._mutex:
            seen = self._seen.setdefault(node, Seen(node))
            if here:
                seen.gone = None
            elif seen.gone is None:
                seen.gone = time.time()
            since = time.time() - _REMEMBERED_S
            for each in list(self._seen.values()):
                if each.gone is not None and each.gone < since:
                    del self._seen[each.id]

    def describe(self, node: str, summary: Summary) -> None:
        """Take down what a node has told of itself."""
        with self._mutex:
            self._seen.setdefault(node, Seen(node)).summary = summary

    def has(self, node: str, instances: dict[str, str], *, all_: bool) -> None:
        """Take down which instances a node has: all of them, or some."""
        with self._mutex:
            seen = self._seen.get(node)
            if seen is None:
                return
            if all_ or len(seen.instances) > _KEPT:
                seen.instances = {}
            seen.instances |= instances

    def all(self) -> list[Seen]:
        """Return every one of them."""
        with self._mutex:
            return list(self._seen.values())

    def there(self) -> list[Seen]:
        """Return those that are there now."""
        return [seen for seen in self.all() if seen.gone is None]
