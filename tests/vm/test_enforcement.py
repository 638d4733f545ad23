"""The table of docs/testing.md says of this hierarchy what can be seen on it."""

from __future__ import annotations

import json
from pathlib import Path

import enforcement
import kernel
import pytest

pytestmark = [pytest.mark.root, pytest.mark.vm]


def test_the_table_says_what_is_enforced_here() -> None:
    hierarchy = kernel.hierarchy()
    seen = enforcement.see()
    assert "" not in seen.values()
    Path(f"/out/enforced-{hierarchy}.json").write_text(json.dumps({hierarchy: seen}))
    assert enforcement.on_page().get(hierarchy) == seen
