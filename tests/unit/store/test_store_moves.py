"""Migrations in the store: a fence outlives its instance and never becomes smaller."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from uuid import uuid4

import pytest

from nativert.store import moves
from nativert.store.durable import Row, Store
from nativert.store.moves import Fence, Move, Outcome, Phase
from nativert.store.paths import Paths

SUBNET = IPv4Network("10.9.0.0/22")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    paths = Paths(tmp_path)
    paths.create()
    with Store(paths) as opened:
        yield opened


def add(store: Store, uuid: str, move: Move | None, fence: Fence | None) -> Row:
    return store.add(
        uuid=uuid,
        name="app",
        fdu=str(uuid4()),
        descriptor="{}",
        record="{}",
        desired="DEFINED",
        subnet=SUBNET,
        blocks=(0,),
        moving=None if move is None else moves.encode(move),
        fence=fence,
    )


def test_an_instance_arrives_with_its_move_and_its_fence_in_one_commit(store: Store) -> None:
    uuid, move = str(uuid4()), Move(epoch=3, phase=Phase.LANDING, peer="other")
    fence = Fence(epoch=3, outcome=Outcome.OPEN, peer="other")
    row = add(store, uuid, move, fence)
    assert moves.decode(row.moving) == move == moves.decode(store.get(uuid).moving)
    assert not move.leaves
    assert store.fence(uuid) == fence


def test_a_fence_outlives_its_instance_and_never_becomes_smaller(store: Store) -> None:
    uuid = str(uuid4())
    assert store.fence(uuid) is None
    add(store, uuid, None, None)
    given = Fence(epoch=5, outcome=Outcome.GIVEN, peer="other")
    store.delete(uuid, fence=given)
    assert store.fence(uuid) == given
    store.forbid(uuid, Fence(epoch=4, outcome=Outcome.ABANDONED, peer="other"))
    assert store.fence(uuid) == given
    newer = Fence(epoch=6, outcome=Outcome.ABANDONED, peer="other")
    store.forbid(uuid, newer)
    assert store.fence(uuid) == newer


def test_an_address_comes_along_where_it_is_of_the_pool_and_free(store: Store) -> None:
    def arrive(name: str, wanted: str) -> str:
        row = store.add(
            uuid=str(uuid4()),
            name=name,
            fdu=str(uuid4()),
            descriptor="{}",
            record="{}",
            desired="DEFINED",
            subnet=SUBNET,
            blocks=(0,),
            interfaces=["eth0"],
            addresses={"eth0": wanted, "eth1": "10.9.0.9"},
        )
        return row.interfaces[0].address

    assert arrive("first", "10.9.1.7") == "10.9.1.7"
    assert arrive("taken", "10.9.1.7") == "10.9.1.8"
    assert arrive("the bridge's own", "10.9.0.1") == "10.9.1.9"
    # Whether it may come from another pool is the caller's to know.
    assert arrive("of another pool", "10.8.0.9") == "10.8.0.9"
    assert arrive("taken there too", "10.8.0.9") == "10.9.1.10"
    store.delete(store.find("first").uuid)
    assert arrive("free again", "10.9.1.7") == "10.9.1.7"
    assert arrive("the last", "10.9.3.254") == "10.9.3.254"
    assert arrive("after the last", "10.9.3.255") == "10.9.0.2"


def test_a_move_ends_where_the_row_says_so(store: Store) -> None:
    uuid = str(uuid4())
    add(store, uuid, None, None)
    for phase in Phase:
        move = Move(epoch=1, phase=phase, peer="other")
        fence = Fence(epoch=1, outcome=Outcome.OPEN, peer="other")
        store.update(uuid, moving=moves.encode(move), fence=fence)
        assert moves.decode(store.get(uuid).moving) == move
    row = store.update(uuid, moving=None)
    assert moves.decode(row.moving) is None
    assert row.corrupt == ""
