"""The directories of one node in every hierarchy: parent, leaves and instances."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from nativert.isolation.cgroups import files, processes
from nativert.isolation.cgroups.driver import LEAVES


class Tree:
    """Makes, lists and removes the same directories below each of several roots.

    *initialise* is called with every directory that was made or found on the way to it.
    """

    def __init__(self, roots: Sequence[str], parent: str, initialise: Callable[[str], None]):
        components = parent.split("/")
        if not all(components) or not {".", ".."}.isdisjoint(components):
            raise ValueError(f"not a path below a hierarchy: {parent!r}")
        self._roots = tuple(dict.fromkeys(roots))
        self._parent = parent
        self._initialise = initialise
        self._made_above: list[str] = []

    def paths(self, name: str) -> list[str]:
        """Return one cgroup's directory in every hierarchy."""
        if not name or "/" in name or name in (".", ".."):
            raise ValueError(f"not the name of a cgroup: {name!r}")
        return [f"{root}/{self._parent}/{name}" for root in self._roots]

    def parents(self) -> list[str]:
        """Return the parent's directory in every hierarchy."""
        return [f"{root}/{self._parent}" for root in self._roots]

    def prepare(self) -> None:
        """Make the parent, with all above it, and its leaves; what exists is kept."""
        for root in self._roots:
            path = root
            *above, last = self._parent.split("/")
            for component in above:
                path = f"{path}/{component}"
                if self._ensure(path):
                    self._made_above.append(path)
            path = f"{path}/{last}"
            self._ensure(path)
            for leaf in LEAVES:
                self._ensure(f"{path}/{leaf}")

    def make(self, name: str) -> None:
        """Make a cgroup in every hierarchy, or in none."""
        paths = self.paths(name)
        files.make_all(paths)
        try:
            for path in paths:
                self._initialise(path)
        except OSError:
            files.remove_all(paths)
            raise

    def names(self) -> tuple[str, ...]:
        """Return the children of the parent in any hierarchy, without the leaves."""
        found = {name for path in self.parents() for name in files.subdirectories(path)}
        return tuple(sorted(found.difference(LEAVES)))

    def exists(self) -> bool:
        """Return whether the parent is in any hierarchy."""
        return any(os.path.isdir(path) for path in self.parents())

    def destroy(self) -> None:
        """Remove leaves and parent, and what this object made above; EBUSY if in use."""
        if names := self.names():
            raise OSError(errno.EBUSY, f"cannot remove: holds {', '.join(names)}", self._parent)
        leaves = [path for leaf in LEAVES for path in self.paths(leaf)]
        for path in (*leaves, *self.parents()):
            if pids := processes.pids(path):
                raise OSError(errno.EBUSY, f"cannot remove: process {pids[0]} is in it", path)
        files.remove_all(leaves)
        # Not nested: an instance made since the look above must survive.
        files.remove_all(self.parents(), nested=False)
        for path in reversed(self._made_above):
            try:
                files.remove_dir(path)
            except OSError:
                pass  # others use it by now; it is not ours alone
        self._made_above.clear()

    def _ensure(self, path: str) -> bool:
        made = not os.path.isdir(path)
        if made:
            try:
                files.make_dir(path)
            except FileExistsError:
                made = False  # another command of this node was quicker
        self._initialise(path)
        return made
