"""A migration under every fault: exactly one copy counts on, and no number is lost or repeated.

All cases, some minutes, with NATIVERT_MIGRATION_CASES=all; else every seventh, beginning with
another one each day.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import migration_cases
import pytest
import scale
from migration_field import Field
from nodes import remove_node

pytestmark = [pytest.mark.root, pytest.mark.netns]

CASES = migration_cases.generate()
EVERY = 7


def test_there_are_enough_cases() -> None:
    assert len(CASES) == len({str(case) for case in CASES}) >= 200


@pytest.mark.timeout(scale.seconds(3600))
def test_exactly_one_copy_goes_on_whatever_happens(tmp_path: Path) -> None:
    chosen = CASES
    if os.environ.get("NATIVERT_MIGRATION_CASES") != "all":
        chosen = CASES[int(time.time() / 86400) % EVERY :: EVERY]
    field = Field(tmp_path)
    ends: Counter[str] = Counter()
    violations = []
    try:
        for case in chosen:
            try:
                ends[field.try_case(case)] += 1
            except AssertionError as e:
                violations.append(f"{case}: {e}")
                break
    finally:
        if not violations:
            for root in field.roots:
                remove_node(root)
    assert violations == []
    assert sum(ends.values()) == len(chosen)
    assert min(ends["source"], ends["target"]) > 0
