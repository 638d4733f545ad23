"""A part of the fault campaign of scripts/faults, as large as there is time for."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import scale
from fault_campaign import campaign
from fault_cases import OPERATIONS, SUPERVISED

import nativert
from nativert.runtime.failpoints import ACTIONS, LAUNCHER, MIGRATION, POINTS, SUPERVISION

Tell = Callable[[str], None]
pytestmark = [pytest.mark.root, pytest.mark.netns]

# Beyond these the sample grows as far as the time allows.
LEAST = scale.count(12, least=3)
LIMIT_S = 60.0


def points_in_the_code() -> Iterator[str]:
    for path in Path(nativert.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "failpoint"
                and isinstance(node.args[0], ast.Constant)
            ):
                yield str(node.args[0].value)
    for path in Path(nativert.__file__).parent.rglob("*.c"):
        yield from re.findall(r'\bfailpoint\("([^"]+)"', path.read_text())


def test_every_point_of_the_code_is_declared() -> None:
    declared = (*POINTS, *SUPERVISION, *MIGRATION, *LAUNCHER)
    assert sorted(points_in_the_code()) == sorted(declared)


@pytest.mark.timeout(600)
def test_the_invariants_hold_after_faults(tmp_path: Path, seed: int, tell: Tell) -> None:
    result = campaign(tmp_path, seed=seed, limit_s=LIMIT_S, least=LEAST, tell=tell)
    cases = result.cases
    tell(f"{result.played.total()} of {len(cases)} cases in {result.seconds:.0f} s")
    # Those of a migration need two nodes: they are passed in its own tests.
    assert {case.point for case in cases} == {*POINTS, *SUPERVISION, *LAUNCHER}
    assert {case.operation for case in cases} == {*OPERATIONS, *SUPERVISED}
    assert {case.process for case in cases} == {"command", "agent", "launcher", "init"}
    assert {case.action for case in cases} == {*ACTIONS, "stop-kill"}
    assert len(set(cases)) == len(cases) >= 500
    assert not result.broken, f"NATIVERT_FAULTS_SEED={seed}"
    assert result.played.total() >= LEAST
