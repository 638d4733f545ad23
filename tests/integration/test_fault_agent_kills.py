"""A few of the random kills of the agent that scripts/faults does by the hundred."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import scale
from agent_kills import storm

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.mark.timeout(600)
def test_agents_are_killed_under_load(
    tmp_path: Path, seed: int, tell: Callable[[str], None]
) -> None:
    kills = scale.count(10, least=4)
    figures = storm(tmp_path / "node", kills=kills, instances=5, seed=seed, pause_s=0.1)
    tell(str(figures))
    assert not figures.broken, f"NATIVERT_FAULTS_SEED={seed}"
    assert figures.kills == kills
    assert figures.asked["accepted"] > 0
