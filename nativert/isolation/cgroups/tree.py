"""The directories of one node in every hierarchy: parent, leaves and instances."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from nativert.isolation.cgroups import files, processes
from nativert.isolation.cgroups.driver import LEAVES

_GIVEN_DEADLINE_S: Final = 5.0
_GIVEN_PAUSE_S: Final = 0.01


class Tree:
    """Makes, lists and removes the same directories below each of several roots.

    *initialise* is called with every directory that was made or found on the way to it.
    Below the roots *given* the parent is made and removed by somebody else (systemd, whose
    scope it is); below the roots *alone* what is above the parent has nobody to remove it.
    """

    def __init__(
        self,
        roots: Sequence[str],
        parent: str,
        initialise: Callable[[str], None],
        *,
        given: Sequence[str] = (),
        alone: Sequence[str] = (),
    ) -> None:
        components = parent.split("/")
        if not all(components) or not {".", ".."}.isdisjoint(components):
            raise ValueError(f"not a path below a hierarchy: {parent!r}")
        self._roots = tuple(dict.fromkeys(roots))
        self._parent = parent
        self._initialise = initialise
        self._given = frozenset(given)
        above = components[:-1]
        # Deepest first: the order of their removal.
        self._above = [
            f"{root}/{'/'.join(above[:depth])}"
            for root in dict.fromkeys(alone)
            for depth in range(len(above), 0, -1)
        ]

    def paths(self, name: str) -> list[str]:
        """Return one cgroup's directory in every hierarchy."""
        if not name or "/" in name or name in (".", ".."):
            raise ValueError(f"not the name of a cgroup: {name!r}")
        return [f"{root}/{self._parent}/{name}" for root in self._roots]

    def parents(self) -> list[str]:
        """Return the parent's directory in every hierarchy."""
        return [f"{root}/{self._parent}" for root in self._roots]

    def prepare(self) -> None:
        """Make the parent, with all above it, and its leaves; what exists is kept.

        FileNotFoundError where the parent is to be given and is not there.
        """
        # What is given first: without it nothing is to be made.
        for root in sorted(self._roots, key=lambda root: root not in self._given):
            if root in self._given:
                self._make_leaves(f"{root}/{self._parent}")
                continue
            path = root
            *above, last = self._parent.split("/")
            for component in above:
                path = f"{path}/{component}"
                if self._ensure(path) and path not in self._above:
                    self._above.insert(0, path)
            path = f"{path}/{last}"
            self._ensure(path)
            self._make_leaves(path)

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
        given = [f"{root}/{self._parent}" for root in self._given]
        ours = [path for path in self.parents() if path not in given]
        # Not nested: an instance made since the look above must survive.
        files.remove_all(ours, nested=False)
        _wait_gone(given)
        for path in self._above:
            try:
                files.remove_dir(path)
            except OSError:
                pass  # others use it by now; it is not ours alone

    def _make_leaves(self, path: str) -> None:
        for leaf in LEAVES:
            self._ensure(f"{path}/{leaf}")

    def _ensure(self, path: str) -> bool:
        made = not os.path.isdir(path)
        if made:
            try:
                files.make_dir(path)
            except FileExistsError:
                made = False  # another command of this node was quicker
        self._initialise(path)
        return made


def _wait_gone(paths: Sequence[str]) -> None:
    deadline = time.monotonic() + _GIVEN_DEADLINE_S
    for path in paths:
        while os.path.isdir(path):
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "empty, and systemd does not remove it", path)
            time.sleep(_GIVEN_PAUSE_S)
