"""Addresses that went to other nodes with their instances: had again once nobody needs them.

Nobody has to remember to say so: each node tells what it knows of an instance, long after it was
there, and the way that it went leads to where it is, or ended. As long as a node on that way does
not answer, its address stays lent.
"""

from __future__ import annotations

from collections.abc import Callable

from nativert.agent.logs import LOGGER
from nativert.agent.nodes.messages import Holding
from nativert.store.durable import Store

Ask = Callable[[str, str], Holding | None]


def recall(store: Store, own: str, ask: Ask) -> None:
    """Recall what is lent and needed no longer; *ask* a node about an instance."""
    for address, instance in store.lent():
        fence = store.fence(instance)
        if fence is not None and _needed(address, instance, fence.peer, own, ask):
            continue
        store.recall(address, instance)
        LOGGER.info("address %s is free again: %s has ended elsewhere", address, instance)


def _needed(address: str, instance: str, node: str, own: str, ask: Ask) -> bool:
    asked: set[str] = set()
    # What is lent is not here: a way that ends here has lost it.
    while node != own:
        if node in asked:
            return True  # It moves while it is asked for.
        asked.add(node)
        holding = ask(node, instance)
        if holding is None:
            return True
        if holding.here or not holding.given:
            return address in holding.addresses
        node = holding.given
    return False
