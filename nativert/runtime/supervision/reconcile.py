"""The reconcile loop: what somebody else took away is put back, and each repair is an event.

Looked at without a lock, repaired under it: what an operation changes meanwhile is no drift.
What cannot be put back is told once as degraded, until it is so no more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from nativert.errors import NativertError
from nativert.fdu.states import State
from nativert.runtime import edges
from nativert.runtime import limits as limits_of
from nativert.runtime.context import descriptor_of
from nativert.runtime.failpoints import failpoint
from nativert.runtime.interfaces import published_address
from nativert.runtime.observe import Observed
from nativert.runtime.protocols import Mending, PortRequest
from nativert.runtime.release import attached
from nativert.runtime.supervision import acts, drift
from nativert.runtime.supervision.drift import Drift
from nativert.store.durable import Row

if TYPE_CHECKING:
    from nativert.runtime.node import Node

_STATES: Final = (State.CONFIGURED, State.RUNNING, State.PAUSED)
# Reading the limits of one takes a fifth of a millisecond.
_IN_A_ROUND: Final = 200


class Reconciler:
    """Holds one node against what its records say; one thread at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._next = 0
        self._links: frozenset[str] = frozenset()
        self._degraded: dict[str, str] = {}
        # What the kernel made of limits that it does not read back as they were written.
        self._accepted: drift.Accepted = {}

    def round(self) -> None:
        """Look at the node's network and at the next instances; repair what is to be repaired."""
        rows = [row for row in self._node.context.store.rows() if not row.corrupt]
        seen = [each for row in rows if (each := self._sound(row)) is not None]
        self._guarded("", lambda: self._network(seen))
        if self._next >= len(seen):
            self._next = 0
        # Once for all: listing them takes longer the more there are.
        linked = any(each.facts is not None and each.facts.links for each in seen)
        self._links = frozenset(self._node.context.network.links() if linked else ())
        part = seen[self._next : self._next + _IN_A_ROUND]
        self._next += _IN_A_ROUND
        for each in part:
            uuid = each.row.uuid
            self._guarded(uuid, partial(self._instance, each))
        acts.make_up(self._node)
        known = {row.uuid for row in rows}
        for uuid in (self._degraded.keys() | self._accepted.keys()) - known - {""}:
            self._degraded.pop(uuid, None)
            self._accepted.pop(uuid, None)

    def _sound(self, row: Row) -> Observed | None:
        try:
            seen = self._node.look(row.uuid)
        except NativertError:
            return None  # Undefined meanwhile.
        settled = seen.event is None and seen.facts is not None and seen.facts.intent is None
        return seen if settled and seen.state in _STATES else None

    def _guarded(self, uuid: str, body: Callable[[], str]) -> None:
        try:
            lasting = body()
        except (NativertError, OSError) as e:
            lasting = str(e)
        if lasting and self._degraded.get(uuid) != lasting:
            self._note(uuid, "degraded", lasting)
        if lasting:
            self._degraded[uuid] = lasting
        else:
            self._degraded.pop(uuid, None)

    def _note(self, uuid: str, kind: str, message: str) -> None:
        self._node.context.store.note(uuid, kind, edges.encode({"message": message}))

    def _network(self, every: list[Observed]) -> str:
        connected = [seen for seen in every if seen.facts is not None and seen.facts.links]
        context = self._node.context
        if not connected or not isinstance(context.network, Mending):
            return ""
        links = [link for seen in connected if seen.facts for link in attached(seen.facts)]
        ports = {
            published_address(seen.row, descriptor_of(seen.row.descriptor, seen.row.name)): [
                PortRequest(p.host_ip, p.host_port, p.instance_port, p.protocol)
                for p in seen.facts.ports
            ]
            for seen in connected
            if seen.facts is not None and seen.facts.ports
        }
        # Nobody removes the node's network, nor adds to it, between the look and the repair.
        lock = context.host_lock(shared=False)
        if not lock.try_acquire():
            return ""
        try:
            for mended in context.network.mend(links, ports):
                self._note("", "repaired", mended)
        finally:
            lock.release()
        return ""

    def _instance(self, seen: Observed) -> str:
        """Repair one instance; return what cannot be repaired."""
        if not self._drift(seen, self._links):
            return ""
        if self._node.context.lock(seen.row.uuid).busy():
            return ""  # An operation is on it: the next round looks again.
        lasting: list[str] = []

        def act(now: Observed) -> Observed:
            if now.facts is None or now.state not in _STATES:
                return now
            facts = now.facts
            for found in self._drift(now, self._node.context.network.links()):
                facts, left = drift.repair(
                    self._node.context, msgspec.structs.replace(now, facts=facts), found
                )
                failpoint("repair.done")
                if found.kind != "namespace":
                    self._note(now.row.uuid, "repaired", found.message)
                if found.kind == "limits":
                    self._accept(now.row)
                if left:
                    lasting.append(left)
            return now if facts is now.facts else msgspec.structs.replace(now, facts=facts)

        self._node.operate(seen.row.uuid, None, act, quiet=True)
        return "; ".join(lasting)

    def _drift(self, seen: Observed, links: Collection[str]) -> list[Drift]:
        accepted = self._accepted.get(seen.row.uuid)
        return drift.find(self._node.context, seen, links, accepted)

    def _accept(self, row: Row) -> None:
        wanted = limits_of.decode(row.limits)
        found = self._node.context.cgroup(row.uuid).read()
        if wanted is not None and drift.differ(wanted, found):
            self._accepted[row.uuid] = (wanted, found)
