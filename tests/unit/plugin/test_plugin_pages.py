"""What the pages about the plugin say, held against the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

from nativert.plugin import manifest, requests
from nativert.plugin.keys import EVALS

ROOT = Path(__file__).parents[3]
PLUGIN = (ROOT / "docs" / "plugin.md").read_text()
FAULTS = (ROOT / "docs" / "fog05-faults.md").read_text()


def test_the_manifest_of_the_page_is_one() -> None:
    blocks = re.findall(r"```json\n(.*?)```", PLUGIN, re.DOTALL)
    assert len(blocks) == 1
    found = manifest.decode(blocks[0].encode(), source="docs/plugin.md")
    assert manifest.native_configuration(found).update_interval_s == 10
    assert set(json.loads(blocks[0])) >= {"uuid", "name", "version", "type"}


def test_the_page_has_every_status_and_eval() -> None:
    table = PLUGIN.split("| desired status |")[1].split("\n\n")[0]
    for word in requests.DONE_IN:
        assert f"`{word}`" in table
    for name in EVALS:
        assert f"`{name}`" in PLUGIN


def test_every_test_of_the_table_of_faults_exists() -> None:
    rows = [line for line in FAULTS.splitlines() if line.startswith("| ")][1:]
    numbers = {int(number) for row in rows for number in re.findall(r"\d+", row.split("|")[1])}
    assert numbers == {*range(1, 39)}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        where = row.split("|")[4]
        named = re.findall(r"`(test_\w+)`", where)
        assert named or ", the same" in where, row
        for name in named:
            assert f"def {name}(" in tests, name
