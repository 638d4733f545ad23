"""No damage of one file keeps another from loading; scripts/faults does it at every byte.

NATIVERT_STORE_DAMAGE=all damages the store at every byte here too, for minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from store_damage import damaged_everywhere

WHOLE = os.environ.get("NATIVERT_STORE_DAMAGE") == "all"


@pytest.mark.timeout(10_000 if WHOLE else 600)
def test_damage_in_every_place_concerns_its_own_file_only(tmp_path: Path) -> None:
    count, broken = damaged_everywhere(tmp_path, every=1 if WHOLE else 64)
    assert broken == []
    assert count > (100_000 if WHOLE else 4000)
