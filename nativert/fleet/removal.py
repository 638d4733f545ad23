"""One node of a fleet and everything that it has on the host, removed: `python -m` with its root.

A process of its own, since it works in the node's network namespace.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nativert.errors import NativertError
from nativert.isolation.network import named
from nativert.runtime.node import Node
from nativert.runtime.place import enter
from nativert.store.paths import Paths


def remove(root: Path) -> None:
    """Remove every instance, then what the node itself has; NativertError, OSError."""
    paths = Paths(root)
    if not paths.node.exists():
        return
    if paths.netns.exists() and paths.netns.read_text().strip() in named.names(""):
        enter(root)
    with Node(root, here=True) as node:
        for row in node.list():
            node.remove(row.instance, force=True)
        stuck = [f"{left.kind} {left.name}" for left in node.gc() if not left.removed]
    if stuck:
        raise NativertError(f"cannot remove {', '.join(stuck)}")


if __name__ == "__main__":
    try:
        remove(Path(sys.argv[1]))
    except (NativertError, OSError) as e:
        sys.exit(str(e))
