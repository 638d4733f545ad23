"""A node that is booted anew while an instance is on its way from it or to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aftermath import alter_facts, assert_nothing_left
from movers import Served, Wire, id_of
from nodes import MakeNode, make_descriptor, start, until

from nativert.errors import Code, NativertError
from nativert.runtime.migration.messages import Kind, Message
from nativert.runtime.migration.source import Mover, Patience
from nativert.runtime.node import Node
from nativert.store import moves
from nativert.store.moves import Move, Phase

pytestmark = [pytest.mark.root, pytest.mark.netns]

APP = "echo run >> /data/runs; exec sleep 1000"
QUICK = Patience(answer_s=5, prepare_s=30, silence_s=1, commit_s=0.3)


class Cut:
    """Two nodes between which COMMIT does not arrive until `whole`."""

    def __init__(self, make_node: MakeNode, directory: Path) -> None:
        self.roots = (directory / "a", directory / "b")
        self.here, self.there = (make_node(root) for root in self.roots)
        self._wire = Wire(*self.roots)
        self._wire.fault = self._lose
        self.served = [Served(node) for node in (self.here, self.there)]
        self.mover = Mover(self.here, self._wire, patience=QUICK)

    def _lose(self, message: Message, deliver: Callable[[Message], Message]) -> Message:
        if message.kind is Kind.COMMIT:
            raise NativertError("cut off", code=Code.TIMEOUT)
        return deliver(message)

    def whole(self) -> None:
        self._wire.fault = None

    def begin(self) -> str:
        uuid = start(self.here, name="mover", shell=APP, veth=True)
        with pytest.raises(NativertError, match="does not say that it runs"):
            self.mover.migrate(uuid, id_of(self.roots[1]))
        return uuid


@pytest.fixture
def cut(make_node: MakeNode, tmp_path: Path) -> Iterator[Cut]:
    one = Cut(make_node, tmp_path)
    yield one
    for served in one.served:
        served.close()


def boot(node: Node, root: Path, uuid: str) -> None:
    """Have what is noted of *uuid* be of another boot."""
    alter_facts(root, uuid, boot_id="of-another-boot")
    with node.context.store._transaction() as connection:
        connection.execute("UPDATE instances SET boot_id = 'of-another-boot'")
        node.context.store._rows.clear()


@pytest.mark.parametrize("booted", ["source", "destination", "both"])
def test_after_the_commit_it_runs_at_the_destination(cut: Cut, booted: str) -> None:
    uuid = cut.begin()
    if booted != "destination":
        boot(cut.here, cut.roots[0], uuid)
    if booted != "source":
        boot(cut.there, cut.roots[1], uuid)
    assert cut.here.get(uuid).state == "TAKE_OFF"
    assert cut.there.get(uuid).state == "LANDING"
    cut.whole()
    cut.mover.deliver(uuid)
    assert cut.here.list() == []
    assert_nothing_left(cut.here, cut.roots[0], uuid)
    assert cut.there.get(uuid).state == "RUNNING"
    data = cut.there.paths.instance_lib(uuid) / "data"
    until(lambda: (data / "runs").read_text() == "run\nrun\n", what="the second run")


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.TAKE_OFF, Phase.ABORTING])
def test_before_the_commit_it_is_defined_at_the_source(
    node: Node, root: Path, phase: Phase
) -> None:
    uuid = start(node, name="mover", shell=APP)
    node.context.store.update(uuid, moving=moves.encode(Move(epoch=1, phase=phase, peer="gone")))
    boot(node, root, uuid)
    row = node.get(uuid)
    assert row.state == "DEFINED"
    assert row.end is not None
    assert row.end.reason == "node-rebooted"
    assert node.context.store.get(uuid).moving is None
    assert_nothing_left(node, root, uuid)
    node.configure(uuid)
    assert node.run(uuid).state == "RUNNING"


def test_what_was_only_prepared_is_gone(node: Node, root: Path) -> None:
    uuid = node.define(make_descriptor(name="mover", shell=APP)).instance
    node.configure(uuid)
    landing = Move(epoch=1, phase=Phase.LANDING, peer="gone")
    node.context.store.update(uuid, moving=moves.encode(landing))
    boot(node, root, uuid)
    assert node.list() == []
    assert not node.paths.instance_lib(uuid).exists()
    fence = node.context.store.fence(uuid)
    assert fence is not None
    assert (fence.epoch, fence.outcome) == (1, moves.Outcome.ABANDONED)
