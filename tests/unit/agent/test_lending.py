"""Addresses that travel: whose they are while they are away, and when they are had again."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from uuid import uuid4

import pytest

from nativert.agent import lending
from nativert.agent.nodes.messages import Holding
from nativert.store import moves
from nativert.store.durable import Store
from nativert.store.moves import Fence, Move, Outcome, Phase
from nativert.store.paths import Paths

SMALL = IPv4Network("10.70.0.0/29")
HOME = "home"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    paths = Paths(tmp_path)
    paths.create()
    with Store(paths) as opened:
        yield opened


def arrive(
    store: Store, wanted: str = "", *, uuid: str = "", phase: Phase | None = None, epoch: int = 1
) -> tuple[str, str]:
    """Define an instance; return its UUID and address."""
    uuid = uuid or str(uuid4())
    move = None if phase is None else Move(epoch=epoch, phase=phase, peer="other")
    row = store.add(
        uuid=uuid,
        name=f"name-{uuid}",
        fdu="fdu",
        descriptor="{}",
        record="{}",
        desired="DEFINED",
        subnet=SMALL,
        blocks=(0,),
        interfaces=["eth0"],
        addresses={"eth0": wanted} if wanted else None,
        moving=None if move is None else moves.encode(move),
        fence=None if move is None else Fence(epoch=epoch, outcome=Outcome.OPEN, peer="other"),
    )
    return uuid, row.interfaces[0].address


def give(store: Store, uuid: str, address: str, *, epoch: int = 1) -> None:
    fence = Fence(epoch=epoch, outcome=Outcome.GIVEN, peer="other")
    store.delete(uuid, fence=fence, lend=[address])


def test_what_is_lent_is_given_to_nobody_but_its_instance(store: Store) -> None:
    uuid, address = arrive(store)
    give(store, uuid, address)
    assert store.lent() == [(address, uuid)]
    others = [arrive(store) for _ in range(4)]
    assert address not in [each for _, each in others]
    with pytest.raises(Exception, match="no address left"):
        arrive(store)
    with pytest.raises(Exception, match="no address left"):
        arrive(store, address)
    assert arrive(store, address, uuid=uuid) == (uuid, address)
    assert store.lent() == []


def test_what_is_recalled_is_free_for_everybody(store: Store) -> None:
    uuid, address = arrive(store)
    give(store, uuid, address)
    store.recall(address, "another")
    assert store.lent() == [(address, uuid)]
    store.recall(address, uuid)
    store.recall(address, uuid)
    assert store.lent() == []
    assert arrive(store, address)[1] == address


def test_what_stays_behind_is_not_lent(store: Store) -> None:
    uuid, address = arrive(store)
    store.delete(uuid, fence=Fence(epoch=1, outcome=Outcome.GIVEN, peer="other"))
    assert store.lent() == []
    assert arrive(store, address)[1] == address


@pytest.mark.parametrize(
    ("phase", "epoch"),
    [
        (None, None),
        (Phase.PREPARING, 6),
        (Phase.TAKE_OFF, 6),
        (Phase.COMMITTED, 6),
        (Phase.ABORTING, 6),
        (Phase.LANDING, None),
        (Phase.HELD, None),
        (Phase.STARTING, 7),
    ],
)
def test_where_an_address_is_while_it_moves(
    store: Store, phase: Phase | None, epoch: int | None
) -> None:
    # Source and destination know it by two epochs: the newer one is right.
    uuid, address = arrive(store, phase=phase, epoch=7)
    here = [] if epoch is None else [(address, "eth0", uuid, epoch)]
    assert store.travelled() == here


def test_once_landed_it_is_there_by_its_epoch(store: Store) -> None:
    uuid, address = arrive(store, "10.90.0.9", phase=Phase.STARTING, epoch=3)
    assert address == "10.90.0.9"
    landed = Fence(epoch=3, outcome=Outcome.LANDED, peer="other")
    store.update(uuid, moving=None, fence=landed)
    assert store.travelled() == [(address, "eth0", uuid, 3)]
    store.delete(uuid)
    assert store.travelled() == []


Told = dict[str, Holding | None]
ADDRESS = "10.70.0.2"
HERE = Holding(here=True, addresses=(ADDRESS,))
GONE = Holding(here=False)


@pytest.mark.parametrize(
    ("told", "lent"),
    [
        ({"other": HERE}, True),
        ({"other": None}, True),
        ({"other": GONE}, False),
        ({"other": Holding(here=True, addresses=("10.90.0.1",))}, False),
        ({"other": Holding(here=False, given="third"), "third": HERE}, True),
        ({"other": Holding(here=False, given="third"), "third": None}, True),
        ({"other": Holding(here=False, given="third"), "third": GONE}, False),
        ({"other": Holding(here=False, given="third"),
          "third": Holding(here=False, given="other")}, True),
        ({"other": Holding(here=False, given=HOME)}, False),
    ],
)  # fmt: skip
def test_an_address_is_had_again_when_its_instance_is_nowhere(
    store: Store, told: Told, lent: bool
) -> None:
    uuid, address = arrive(store)
    assert address == ADDRESS
    give(store, uuid, address)
    asked: list[tuple[str, str]] = []

    def ask(node: str, instance: str) -> Holding | None:
        asked.append((node, instance))
        return told[node]

    lending.recall(store, HOME, ask)
    assert bool(store.lent()) == lent
    assert asked == [(node, uuid) for node in told]
