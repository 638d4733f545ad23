"""The helpers of the integration tests, and which test of power cuts belongs to this boot."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep of the tests marked `reboot(N)` those for the boot of that number."""
    boot = int(os.environ.get("NATIVERT_BOOT", "0"))
    other = [
        item
        for item in items
        if (marker := item.get_closest_marker("reboot")) and boot and marker.args != (boot,)
    ]
    if other:
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if item not in other]
