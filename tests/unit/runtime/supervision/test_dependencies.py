"""The order of depends_on."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import Code, NativertError
from nativert.fdu.descriptor import decode, encode
from nativert.runtime.supervision.dependencies import levels, named, needed
from nativert.store.durable import Row


def row(name: str, *needs: str, fdu_id: str = "") -> Row:
    document = {
        "id": fdu_id or f"fdu-{name}",
        "name": name,
        "command": {"binary": "/bin/true"},
        "hypervisor": "BARE",
        "depends_on": list(needs),
    }
    descriptor = decode(json.dumps(document).encode(), source="test")
    return Row(
        seq=1,
        uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
        name=name,
        fdu=descriptor.fdu_uuid,
        descriptor=encode(descriptor).decode(),
        record="{}",
        limits=None,
        desired="DEFINED",
        boot_id="",
        id_range=0,
        run_count=0,
        end=None,
        created_at=0.0,
    )


def test_an_entry_is_a_name_a_uuid_or_an_fdu() -> None:
    db = row("db", fdu_id="postgres")
    for entry in ("db", db.uuid, "postgres", db.fdu):
        web = row("web", entry)
        assert named([web, db], web) == {entry: db}


def test_the_order_and_the_refusals() -> None:
    rows = [row("web", "cache", "db"), row("cache", "db"), row("db"), row("alone")]
    assert [each.name for each in needed(rows, rows[0])] == ["db", "cache"]
    assert needed(rows, rows[3]) == []
    with pytest.raises(NativertError) as refused:
        needed(rows[:2], rows[0])
    assert (refused.value.code, "db" in str(refused.value)) == (Code.REQUIREMENTS, True)
    circle = [row("a", "b"), row("b", "c"), row("c", "b")]
    with pytest.raises(NativertError, match="b -> c -> b"):
        needed(circle, circle[0])


@given(st.lists(st.sets(st.integers(0, 9), max_size=4), min_size=1, max_size=10))
def test_levels_hold_everybody_once_and_in_order(wanted: list[set[int]]) -> None:
    # Each may depend on those before it only: no circles.
    rows = [
        row(f"n{n}", *(f"n{other}" for other in sorted(needs) if other < n))
        for n, needs in enumerate(wanted)
    ]
    found = levels(rows)
    assert sorted(each.name for level in found for each in level) == sorted(r.name for r in rows)
    depth = {each.uuid: n for n, level in enumerate(found) for each in level}
    for each in rows:
        before = [other for other in named(rows, each).values() if other is not None]
        assert all(depth[other.uuid] < depth[each.uuid] for other in before)


def test_levels_survive_circles() -> None:
    rows = [row("a", "b"), row("b", "a"), row("c", "a")]
    assert sum(len(level) for level in levels(rows)) == 3
