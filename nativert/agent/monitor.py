"""Measuring every running instance again and again.

The counters are read anew for whoever asks; the share of CPU time is that of the last interval,
so that it does not depend on who else has asked when.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import msgspec

from nativert.agent.logs import LOGGER
from nativert.errors import NativertError
from nativert.runtime.node import Node
from nativert.runtime.views import Figures, Instance


class Sampler:
    """A thread that measures each *interval_s*."""

    def __init__(self, node: Node, interval_s: float) -> None:
        self.interval_s = interval_s
        self._node = node
        self._at = 0.0
        self._used: dict[str, int] = {}
        self._ratios: dict[str, float] = {}
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

    def ratio(self, uuid: str, fresh: float | None) -> float | None:
        """Return the share of the last interval, or *fresh* for what has begun since."""
        return fresh if fresh is None else self._ratios.get(uuid, fresh)

    def figures(self, refs: Sequence[str] | None = None) -> list[Figures]:
        """Return the figures of the given instances, or of all that run."""
        return [
            msgspec.structs.replace(f, cpu_ratio=self.ratio(f.instance, f.cpu_ratio))
            for f in self._node.stats(refs)
        ]

    def rows(self) -> list[Instance]:
        """Return every instance."""
        return [
            msgspec.structs.replace(row, cpu_ratio=self.ratio(row.instance, row.cpu_ratio))
            for row in self._node.list()
        ]

    def _run(self) -> None:
        while not self._ending.wait(self.interval_s):
            self._measure()

    def _measure(self) -> None:
        try:
            figures = self._node.stats()
        except (NativertError, OSError) as e:
            LOGGER.warning("cannot measure: %s", e)
            return
        now = time.monotonic()
        used = {f.instance: f.cpu_ns for f in figures if f.cpu_ns is not None}
        elapsed_ns = (now - self._at) * 1e9
        self._ratios = {
            # A new run has begun with a new count.
            uuid: max(0, ns - self._used[uuid]) / elapsed_ns
            for uuid, ns in used.items()
            if uuid in self._used
        }
        self._at, self._used = now, used
