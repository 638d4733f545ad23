"""Playing cases until they are through or the time is over, and telling what came of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fault_cases import Case, enumerate_cases
from fault_field import open_field


@dataclass
class Result:
    """What a campaign has shown."""

    seed: int
    cases: list[Case] = field(default_factory=list)
    played: Counter[str] = field(default_factory=Counter)
    broken: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0


def chosen(cases: Sequence[Case], seed: int) -> list[Case]:
    """Return all of *cases*, so mixed that the first ones are of every process."""
    shuffled = random.Random(seed).sample(cases, len(cases))
    queues = {name: [c for c in shuffled if c.process == name] for name in _processes(cases)}
    mixed = []
    while any(queues.values()):
        mixed += [queue.pop() for queue in queues.values() if queue]
    return mixed


def _processes(cases: Sequence[Case]) -> list[str]:
    return sorted({case.process for case in cases})


def campaign(
    top: Path,
    *,
    seed: int,
    limit_s: float | None = None,
    least: int = 0,
    tell: Callable[[str], None] = print,
) -> Result:
    """Play all cases on a node under *top*; after *limit_s* none but the *least* number."""
    began = time.monotonic()
    result = Result(seed)
    with open_field(top / "node") as ground:
        result.cases = enumerate_cases(ground.node, ground.root)
        for case in chosen(result.cases, seed):
            late = limit_s is not None and time.monotonic() - began > limit_s
            if late and result.played.total() >= least:
                break
            broken = ground.play(case)
            result.played[case.process] += 1
            if broken:
                result.broken[str(case)] = broken
                tell(f"{case}: {'; '.join(broken)}")
    result.seconds = time.monotonic() - began
    return result
