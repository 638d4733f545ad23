"""Measuring: every running instance, again and again, so that all who ask see the same figures."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from nativert.agent.logs import LOGGER
from nativert.errors import NativertError
from nativert.runtime.node import Node
from nativert.runtime.views import Figures


class Sampler:
    """A thread that measures each *interval_s*; the share of CPU time is that of one interval."""

    def __init__(self, node: Node, interval_s: float) -> None:
        self.interval_s = interval_s
        self._node = node
        self._latest: list[Figures] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        """Measure once, and from now on."""
        self._measure()
        self._thread.start()

    def close(self) -> None:
        """Stop measuring."""
        self._ending.set()
        self._thread.join()

    def figures(self) -> Sequence[Figures]:
        """Return the last figures of all that ran then."""
        return self._latest

    def of(self, uuid: str) -> Figures | None:
        """Return the last figures of one instance; None if it did not run then."""
        return next((f for f in self._latest if f.instance == uuid), None)

    def _run(self) -> None:
        while not self._ending.wait(self.interval_s):
            self._measure()

    def _measure(self) -> None:
        try:
            self._latest = self._node.stats()
        except (NativertError, OSError) as e:
            LOGGER.warning("cannot measure: %s", e)
