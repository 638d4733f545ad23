"""The way to other nodes: which there are, which of them has an instance, and requests to one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeVar

import msgspec

from nativert.agent.fog05 import paths
from nativert.agent.logs import LOGGER
from nativert.agent.nodes import messages
from nativert.agent.nodes.known import Known, Seen
from nativert.agent.nodes.messages import (
    About,
    Dropped,
    Find,
    Found,
    Holding,
    Holds,
    Summary,
    Taken,
)
from nativert.agent.nodes.serving import Serving
from nativert.errors import Code, NativertError, UnknownInstanceError
from nativert.fdu.known import known
from nativert.plugin.connector import Closing
from nativert.plugin.zenoh_requests import EVERYBODY, ZenohRequests

if TYPE_CHECKING:
    from nativert.plugin.zenoh_connector import ZenohConnector
    from nativert.runtime.context import Context

_T = TypeVar("_T")
# How long others may think about a question that needs no work.
_QUICK_S: Final = 2.5
_BEAT_S: Final = 10.0
# An answer may take as long as an application runs: that its node is there is asked meanwhile.
_LONGEST_S: Final = 30 * 86400.0
_LOOK: Final = "nativert node ls tells which nodes are there"


class Owner(NamedTuple):
    """Where an instance is: the node's id, and the UUID."""

    node: str
    instance: str


class Nodes:
    """Other nodes, for one agent; between `start` and `close` it answers them too."""

    def __init__(
        self, context: Context, connector: ZenohConnector, addresses: tuple[str, ...]
    ) -> None:
        self.id = context.identity.id
        self._context = context
        self._connector = connector
        self._serving = Serving(context, addresses)
        self._known = Known()
        self._requests: ZenohRequests | None = None
        self._watching: Closing | None = None

    def start(self) -> None:
        """Look out for others, and answer them."""
        session = self._connector.session
        self._requests = ZenohRequests(session, self.id, self._serving.answer)
        self._watching = self._connector.watch(paths.alive("*"), self._note)

    def close(self) -> None:
        """Answer no longer; what others have asked is given up."""
        if self._watching is not None:
            self._watching.close()
        if self._requests is not None:
            self._requests.close()
        self._serving.close()

    # -- which nodes there are -----------------------------------------------------------

    def summary(self) -> Summary:
        """Return what this node tells of itself."""
        return self._serving.summary()

    def all(self) -> list[tuple[Seen, Summary | None]]:
        """Return every other node, and what each tells of itself now; None where it does not."""
        told = self._describe() if self._known.there() else {}
        return [(seen, told.get(seen.id)) for seen in self._known.all()]

    def there(self) -> list[Seen]:
        """Return the other nodes that are there."""
        return self._known.there()

    def name(self, node: str) -> str:
        """Return what a node is called, as far as that is known."""
        return next((seen.name for seen in self._known.all() if seen.id == node), node)

    def resolve(self, node: str) -> str:
        """Return the id of the node with this id or name; it is there.

        NativertError NOT_FOUND, NO_AGENT for one that is gone, AMBIGUOUS.
        """
        if node in (self.id, self._context.name) and not self._named(node):
            return self.id
        if any(seen.summary is None for seen in self._known.there()):
            self._describe()
        found = self._named(node)
        if node == self._context.name:
            found.append(Seen(self.id))
        there = [seen for seen in found if seen.gone is None]
        if len(there) == 1:
            return there[0].id
        if there:
            ids = ", ".join(seen.id for seen in there)
            raise NativertError(
                f"{node}: {len(there)} nodes have this name: {ids}",
                code=Code.AMBIGUOUS,
                hint="give the id",
            )
        if found:
            self._refuse_gone(found[0])
        raise NativertError(
            f"{node}: no such node is there",
            code=Code.NOT_FOUND,
            hint=f"see whether its agent runs, and whether both let each other in; {_LOOK}",
        )

    def _named(self, node: str) -> list[Seen]:
        known = self._known.all()
        return [s for s in known if s.id == node] or [s for s in known if s.name == node]

    @staticmethod
    def _refuse_gone(seen: Seen, what: str = "") -> NoReturn:
        ago = max(0.0, time.time() - (seen.gone or 0.0))
        raise NativertError(
            f"{what}node {seen.name} is gone since {ago:.0f} s",
            code=Code.NO_AGENT,
            hint=f"its instances may go on: see whether its agent runs; {_LOOK}",
        )

    def _note(self, path: str, here: bool) -> None:
        node = path.rpartition("/")[2]
        if node == self.id:
            return
        self._known.note(node, here=here)
        if here:
            # Not here: what becomes of others must not wait for its answer.
            threading.Thread(target=self._greet, args=(node,), name="node", daemon=True).start()
        else:
            LOGGER.warning("node %s is gone", self.name(node))

    def _greet(self, node: str) -> None:
        try:
            self._describe(node)
        except (NativertError, OSError) as e:
            LOGGER.warning("node %s is there, and does not answer: %s", node, e)
            return
        LOGGER.info("node %s is there as %s", self.name(node), node)

    def _describe(self, node: str = EVERYBODY) -> dict[str, Summary]:
        told = dict(self._ask(node, About(), Summary, _QUICK_S))
        for who, summary in told.items():
            self._known.describe(who, summary)
        return told

    # -- where an instance is ------------------------------------------------------------

    def owner(self, ref: str) -> Owner:
        """Return where the instance is that *ref* names, which is none of this node's.

        UnknownInstanceError; NativertError AMBIGUOUS, TIMEOUT where a node does not say,
        NO_AGENT where it was on one that is gone.
        """
        there = {seen.id for seen in self._known.there()}
        found: list[tuple[str, Found]] = []
        answered = set()
        if there:
            for node, these in self._ask(EVERYBODY, Find(ref=ref), tuple[Found, ...], _QUICK_S):
                answered.add(node)
                found += [(node, each) for each in these]
        for node, each in found:
            self._known.has(node, {each.instance: each.name}, all_=False)
        chosen = [pair for pair in found if pair[1].exact] or found
        # On its way it is on two nodes: the one that it leaves has the say.
        homes = {each.instance: node for node, each in chosen if each.lands}
        homes |= {each.instance: node for node, each in chosen if not each.lands}
        if len(homes) == 1:
            ((instance, node),) = homes.items()
            return Owner(node, instance)
        if homes:
            names = {each.instance: each.name for _, each in chosen}
            shown = ", ".join(
                f"{self.name(node)}/{names[instance]} ({instance})"
                for instance, node in sorted(homes.items())[:8]
            )
            raise NativertError(
                f"{ref}: {len(homes)} instances of other nodes: {shown}",
                code=Code.AMBIGUOUS,
                hint="give NODE/NAME, or the UUID",
            )
        silent = [seen for seen in self._known.there() if seen.id in there - answered]
        if silent:
            raise NativertError(
                f"{ref}: not here, and node {silent[0].name} has not said within {_QUICK_S:g} s"
                " whether it has it",
                code=Code.TIMEOUT,
                hint=_LOOK,
            )
        self._refuse_lost(ref)
        raise UnknownInstanceError(ref)

    def _refuse_lost(self, ref: str) -> None:
        for seen in self._known.all():
            had = any(ref == name or instance.startswith(ref.lower())
                      for instance, name in seen.instances.items())  # fmt: skip
            if seen.gone is not None and had:
                self._refuse_gone(seen, f"{ref}: ")

    def has(self, node: str, instances: dict[str, str]) -> None:
        """Remember the instances that a node has, names by UUID."""
        self._known.has(node, instances, all_=True)

    def holds(self, node: str, instance: str) -> Holding | None:
        """Return where a node says that an instance is; None where it does not say."""
        told = self._ask(node, Holds(instance=instance), Holding, _QUICK_S)
        return told[0][1] if told else None

    # -- requests ------------------------------------------------------------------------

    def send(
        self,
        node: str,
        question: messages.Question,
        *,
        took: Callable[[str, bytes], None],
        over: Callable[[], None],
    ) -> None:
        """Ask a node what may take long; NativertError NETWORK.

        *took* gets the node and each part of the answer as `messages` has them, *over* is
        called at the end. Both must not block.
        """
        data = msgspec.json.encode(question)
        self._to().send(node, data, timeout_s=_LONGEST_S, took=took, over=over)

    def taken(self, node: str, id_: str, parts: int) -> bool:
        """Say that an answer is still wanted; return whether its node still works at it."""
        return any(still for _, still in self._ask(node, Taken(id=id_, parts=parts), bool, _BEAT_S))

    def drop(self, node: str, id_: str) -> None:
        """Say that an answer is not wanted any more."""
        try:
            self._ask(node, Dropped(id=id_), bool, _QUICK_S)
        except NativertError as e:
            LOGGER.debug("cannot give up a request: %s", e)

    def _to(self) -> ZenohRequests:
        if self._requests is None:
            raise NativertError("not on the network yet", code=Code.BUSY, hint="try again")
        return self._requests

    def _ask(
        self, node: str, question: messages.Question, kind: type[_T], timeout_s: float
    ) -> list[tuple[str, _T]]:
        """Return what is answered in time, by node; without what is no *kind*."""
        answers: list[tuple[str, _T]] = []
        for who, part in self._to().ask(node, msgspec.json.encode(question), timeout_s=timeout_s):
            try:
                answers.append((who, msgspec.json.decode(part, type=known(kind))))
            except msgspec.DecodeError as e:
                LOGGER.warning("node %s: not an answer of an agent: %s", who, e)
        return answers
