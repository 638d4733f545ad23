from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.plugin.connector import matches
from nativert.plugin.path_tree import PathTree

_chunk = st.sampled_from(["a", "b", "c"])
_path = st.lists(_chunk, min_size=1, max_size=5).map(lambda chunks: "/" + "/".join(chunks))
_selector = st.lists(st.one_of(_chunk, st.sampled_from(["*", "**"])), min_size=1, max_size=5).map(
    lambda chunks: "/" + "/".join(chunks)
)


@given(st.sets(_path, max_size=20), _selector)
def test_a_tree_finds_what_the_pattern_of_a_selector_means(paths: set[str], selector: str) -> None:
    tree: PathTree[str] = PathTree()
    for path in paths:
        tree.set(path, path)
    found = list(tree.find(selector))
    assert sorted(found) == [(path, path) for path in sorted(paths) if matches(selector, path)]


@given(st.lists(_path, min_size=1, max_size=20))
def test_nothing_stays_of_what_is_taken_away(paths: list[str]) -> None:
    tree: PathTree[str] = PathTree()
    for path in paths:
        tree.set(path, path)
    for path in set(paths):
        assert tree.pop(path) == path
        assert tree.pop(path) is None
    assert list(tree.find("/**")) == []
    assert not tree._root.branches


@pytest.mark.parametrize("path", ["/a/b", "a/b", "a/b/"])
def test_slashes_at_the_ends_mean_nothing(path: str) -> None:
    tree: PathTree[int] = PathTree()
    tree.set("/a/b", 7)
    assert tree.get(path) == 7
    assert tree.get("/a/*") is tree.get("/**") is tree.get("/a") is tree.get("/a/b/c") is None
