"""No damage of one file keeps another from loading; scripts/faults does the same."""

from __future__ import annotations

from pathlib import Path

from store_damage import damaged_everywhere


def test_damage_in_every_place_concerns_its_own_file_only(tmp_path: Path) -> None:
    count, broken = damaged_everywhere(tmp_path, every=1)
    assert broken == []
    assert count > 3000
