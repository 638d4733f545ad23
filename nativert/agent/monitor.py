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
from nativert.fdu.states import State
from nativert.isolation.cgroups.driver import Sampler as CgroupSampler
from nativert.runtime.context import Context
from nativert.runtime.node import Node
from nativert.runtime.views import Figures, Instance


class Sampler:
    """A thread that measures each *interval_s*."""

    def __init__(self, node: Node, context: Context, interval_s: float) -> None:
        self.interval_s = interval_s
        self._node = node
        self._context = context
        # Of this thread: nobody else reads from the descriptors.
        self._counters: dict[str, CgroupSampler] = {}
        self._used: dict[str, tuple[float, int]] = {}
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
        while self._counters:
            self._counters.popitem()[1].close()

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
            wanted = {
                row.uuid
                for row in self._context.store.rows()
                if not row.corrupt and row.desired == State.RUNNING.value
            }
        except NativertError as e:
            LOGGER.warning("cannot measure: %s", e)
            return
        for uuid in self._counters.keys() - wanted:
            self._counters.pop(uuid).close()
            self._used.pop(uuid, None)
        ratios = {}
        for uuid in wanted:
            ratio = self._ratio(uuid)
            if ratio is not None:
                ratios[uuid] = ratio
        self._ratios = ratios

    def _ratio(self, uuid: str) -> float | None:
        """Return the cores used since the last time; None at the first, or without a cgroup."""
        try:
            if uuid not in self._counters:
                self._counters[uuid] = self._context.cgroup(uuid).sampler()
            used_ns, _, _ = self._counters[uuid].core()
        except OSError:
            # Removed, or made anew: opened again the next time.
            if uuid in self._counters:
                self._counters.pop(uuid).close()
            self._used.pop(uuid, None)
            return None
        now = time.monotonic()
        before = self._used.get(uuid)
        self._used[uuid] = now, used_ns
        # A count that is smaller is that of a new run.
        if before is None or used_ns < before[1] or now <= before[0]:
            return None
        return (used_ns - before[1]) / 1e9 / (now - before[0])
