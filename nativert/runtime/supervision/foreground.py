"""Somebody who is there for one instance: a command in the foreground, where no agent is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nativert.runtime.facade import Facade
from nativert.runtime.node import Node
from nativert.runtime.supervision.supervisor import Supervisor


@contextmanager
def attended(node: Facade, uuid: str) -> Iterator[Supervisor | None]:
    """Supervise the instance, and what it depends on, within the block.

    Where *node* is reached through an agent, that does it, and there is no supervisor here.
    """
    if not isinstance(node, Node):
        yield None
        return
    supervisor = Supervisor(node, only={uuid})
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.close()
