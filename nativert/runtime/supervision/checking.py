"""One health check of one instance, and what follows from its result."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from nativert.errors import NativertError
from nativert.fdu.states import State
from nativert.runtime import edges
from nativert.runtime.context import descriptor_of
from nativert.runtime.supervision import acts
from nativert.runtime.supervision.probe import probe
from nativert.runtime.supervision.watched import Watched

if TYPE_CHECKING:
    from nativert.runtime.node import Node
    from nativert.runtime.supervision.supervisor import Supervisor


class Checking:
    """What the probing threads of a supervisor do."""

    def __init__(self, node: Node, supervisor: Supervisor) -> None:
        self._node = node
        self._supervisor = supervisor

    def check(self, watched: Watched) -> None:
        """Probe the application once; one that becomes unhealthy is stopped by its policy."""
        checks = watched.checks
        if checks is None:
            return
        checks.due = time.monotonic() + checks.health.interval_s
        seen = self._node.look(watched.uuid)
        facts = seen.facts
        if facts is None or facts.run != checks.run or seen.state is not State.RUNNING:
            return
        result = probe(self._node.context, seen.row, facts, checks.health)
        after = self._node.look(watched.uuid)
        if after.facts is None or after.facts.run != checks.run or after.state is not State.RUNNING:
            return  # Paused, stopped or started anew meanwhile: it says nothing.
        change = checks.note(result, time.monotonic())
        if change is None:
            return
        data = edges.encode({"message": result.text, "failures": checks.failures})
        self._node.context.store.note(watched.uuid, change, data)
        policy = descriptor_of(seen.row.descriptor, seen.row.name).native.restart.policy
        if change == "unhealthy" and policy != "never":
            note = f"{checks.failures} failures, the last: {result.text}"
            stop = partial(acts.stop_unhealthy, self._node, watched.uuid, checks.run, note)
            try:
                self._supervisor.soon(stop)
            except NativertError:
                stop()  # No thread for it, and it is told once.
