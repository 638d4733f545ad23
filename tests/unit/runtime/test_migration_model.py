"""The migration protocol, searched by Spin: every order of steps, losses and crashes.

The model says what is checked. Each of the faults that are put into it here must be found, so
that a model which holds because it does nothing is seen.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import scale

from nativert.runtime.migration.messages import Kind
from nativert.store.moves import Outcome, Phase

MODEL = Path(__file__).parents[2] / "model/migration.pml"
DEADLINE_S = scale.seconds(300)

FAULTS = {
    "the destination gives up what it has confirmed": (
        "atomic { phase[i] == LANDING -> phase[i] = NONE;",
        "atomic { waits -> phase[i] = NONE;",
    ),
    "the source goes back on its commit": (
        "atomic { moves -> phase[i] = ABORTING;",
        "atomic { moves || phase[i] == COMMITTED -> phase[i] = ABORTING;",
    ),
    "a replayed message is believed": (
        "at(PREPARE, 1) && e < 1",
        "at(PREPARE, 1) && e <= 1",
    ),
    "the commit is sent by nobody once the mover is dead": (
        "atomic { phase[i] == COMMITTED && !at(COMMIT, e)",
        "atomic { phase[i] == COMMITTED && mover[i] && !at(COMMIT, e)",
    ),
    "the source starts again while the destination may": (
        "atomic { phase[i] == OWNER && !running[i] -> start() }",
        "atomic { phase[i] != NONE && !waits && !running[i] -> start() }",
    ),
}


def search(directory: Path, text: str, *options: str, how: str = "-DSAFETY") -> str:
    """Return what the verifier says of the model *text*."""
    (directory / "model.pml").write_text(text)
    subprocess.run(["spin", "-a", *options, "model.pml"], cwd=directory, check=True, timeout=60)
    build = ["gcc", "-O1", "-w", how, "-o", "pan", "pan.c"]
    subprocess.run(build, cwd=directory, check=True, timeout=DEADLINE_S)
    arguments = ["-m100000", *(["-l"] if how == "-DNP" else [])]
    ended = subprocess.run(
        ["./pan", *arguments], cwd=directory, check=True, timeout=DEADLINE_S, capture_output=True
    )
    return ended.stdout.decode()


def errors(report: str) -> int:
    found = re.search(r"errors: (\d+)", report)
    assert found is not None, report
    return int(found[1])


@pytest.mark.timeout(DEADLINE_S)
def test_never_two_copies_run_and_in_the_end_exactly_one_does(tmp_path: Path) -> None:
    report = search(tmp_path, MODEL.read_text())
    assert errors(report) == 0
    assert "max search depth too small" not in report
    states = re.search(r"(\d+) states, stored", report)
    assert states is not None
    assert int(states[1]) > 100_000
    # Every line of the model is reached: only the ends of its endless loops are not.
    assert set(re.findall(r'state \d+, "([^"]*)"', report)) == {"-end-"}


@pytest.mark.timeout(DEADLINE_S)
def test_no_run_is_endless(tmp_path: Path) -> None:
    report = search(tmp_path, MODEL.read_text(), "-DLOSSES=0", how="-DNP")
    assert errors(report) == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_protocol_is_found(tmp_path: Path, fault: str) -> None:
    right, wrong = FAULTS[fault]
    text = MODEL.read_text()
    assert text.count(right) == 1
    assert errors(search(tmp_path, text.replace(right, wrong))) == 1


def names(kind: str) -> set[str]:
    listed = re.search(rf"mtype:{kind} = \{{([^}}]*)\}}", MODEL.read_text())
    assert listed is not None
    return {name.strip() for name in listed[1].split(",")}


def test_the_code_has_the_names_of_the_model() -> None:
    assert names("message") == {kind.name for kind in Kind}
    assert names("phase") == {phase.name for phase in Phase} | {"NONE", "OWNER"}
    assert names("outcome") == {outcome.name for outcome in Outcome}
