"""The diagram of docs/states.md is the one that the table gives."""

from pathlib import Path

from nativert.fdu.states import State, render

PAGE = Path(__file__).parents[2] / "docs/states.md"


def test_the_diagram_is_that_of_the_table() -> None:
    shown = PAGE.read_text().partition("```mermaid\n")[2].partition("```")[0].splitlines()
    assert shown == render("mermaid").splitlines()


def test_every_state_has_its_word() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    words = {row[0].strip("| "): row[1] for row in rows if len(row) > 2}
    for state in State:
        assert words[state.value] == state.wire
