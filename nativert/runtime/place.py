"""The network namespace of a node that has one of its own, as those of a fleet on one host do."""

from __future__ import annotations

import os
from pathlib import Path

from nativert.errors import Code, NativertError
from nativert.isolation import syscalls
from nativert.isolation.network import named
from nativert.store.paths import Paths


def enter(root: Path | None) -> bool:
    """Bring the calling thread, and those that it starts, into the namespace of the node at *root*.

    Returns whether the node has one of its own. NativertError NETWORK where that is gone.
    """
    try:
        name = Paths(root).netns.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        netns = named.open_named(name)
    except FileNotFoundError:
        raise NativertError(
            f"the network namespace {name} of this node is gone",
            code=Code.NETWORK,
            hint="a reboot ends a fleet: nativert down removes what is left of it",
        ) from None
    try:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
    finally:
        os.close(netns)
    return True
