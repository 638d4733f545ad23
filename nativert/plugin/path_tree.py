"""Values by path, found by selectors without looking at each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")


class _Branch(Generic[_T]):
    __slots__ = ("branches", "here")

    def __init__(self) -> None:
        self.branches: dict[str, _Branch[_T]] = {}
        self.here: _T | None = None


class PathTree(Generic[_T]):
    """In a selector `*` is one chunk, `**` any number of them; no locks of its own."""

    def __init__(self) -> None:
        self._root: _Branch[_T] = _Branch()

    def set(self, path: str, value: _T) -> None:
        """Put a value in place of the one before."""
        branch = self._root
        for chunk in _chunks(path):
            branch = branch.branches.setdefault(chunk, _Branch())
        branch.here = value

    def pop(self, path: str) -> _T | None:
        """Take a value away; None when absent."""
        passed = [self._root]
        chunks = _chunks(path)
        for chunk in chunks:
            branch = passed[-1].branches.get(chunk)
            if branch is None:
                return None
            passed.append(branch)
        value, passed[-1].here = passed[-1].here, None
        while chunks and not (passed[-1].branches or passed[-1].here is not None):
            passed.pop()
            del passed[-1].branches[chunks.pop()]
        return value

    def get(self, path: str) -> _T | None:
        """Return the value at *path* itself: a `*` in it is no more than a star."""
        branch: _Branch[_T] | None = self._root
        for chunk in _chunks(path):
            branch = branch.branches.get(chunk) if branch else None
        return branch.here if branch else None

    def find(self, selector: str) -> Iterator[tuple[str, _T]]:
        """Yield path and value of all that a selector means, in no order."""
        seen = set()
        for path, value in _walk(self._root, tuple(_chunks(selector)), ""):
            # Two `**` reach the same in several ways.
            if path not in seen:
                seen.add(path)
                yield path, value


def _walk(branch: _Branch[_T], wanted: tuple[str, ...], path: str) -> Iterator[tuple[str, _T]]:
    if not wanted:
        if branch.here is not None:
            yield path, branch.here
        return
    first, rest = wanted[0], wanted[1:]
    if first == "**":
        yield from _walk(branch, rest, path)
        for chunk, below in branch.branches.items():
            yield from _walk(below, wanted, f"{path}/{chunk}")
    elif first == "*":
        for chunk, below in branch.branches.items():
            yield from _walk(below, rest, f"{path}/{chunk}")
    elif first in branch.branches:
        yield from _walk(branch.branches[first], rest, f"{path}/{first}")


def _chunks(path: str) -> list[str]:
    return path.strip("/").split("/")
