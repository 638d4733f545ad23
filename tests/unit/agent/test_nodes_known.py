"""What an agent remembers of other nodes, and the questions that it takes."""

from __future__ import annotations

import msgspec
import pytest

from nativert.agent.nodes import known, messages
from nativert.agent.nodes.known import Known
from nativert.agent.nodes.messages import Find, Piece, Request, Summary, Talk
from nativert.errors import Code, NativertError


def test_a_node_that_goes_stays_known_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(known.time, "time", lambda: now[0])
    nodes = Known()
    nodes.note("a", here=True)
    nodes.note("b", here=True)
    nodes.describe("a", Summary(name="alpha", addresses=(), instances=0))
    nodes.note("a", here=False)
    now[0] += 10
    nodes.note("a", here=False)
    assert [(seen.name, seen.gone) for seen in nodes.all()] == [("alpha", 1000.0), ("b", None)]
    assert [seen.id for seen in nodes.there()] == ["b"]
    nodes.note("a", here=True)
    assert len(nodes.there()) == 2
    nodes.note("a", here=False)
    now[0] += 86401
    nodes.note("b", here=True)
    assert [seen.id for seen in nodes.all()] == ["b"]


def test_what_a_node_had_is_what_it_last_told() -> None:
    nodes = Known()
    nodes.has("a", {"1": "web"}, all_=True)
    assert nodes.all() == []
    nodes.note("a", here=True)
    nodes.has("a", {"1": "web"}, all_=False)
    nodes.has("a", {"2": "db"}, all_=False)
    assert nodes.all()[0].instances == {"1": "web", "2": "db"}
    nodes.has("a", {"2": "db"}, all_=True)
    assert nodes.all()[0].instances == {"2": "db"}


def test_a_question_survives_the_wire_and_what_is_none_is_refused() -> None:
    for question in (
        Find(ref="web"),
        Request(id="1", sender="a", method="POST", target="/v1/gc", body=b"{}\xff"),
        Talk(id="1", sender="a", target="/v1/instances/web/exec"),
        Piece(id="1", number=1, data=b"\x00\xff"),
    ):
        assert messages.decode(msgspec.json.encode(question)) == question
    for data in (b"", b"{}", b'{"type": "find"}', b'{"type": "other"}', b"\xff"):
        with pytest.raises(NativertError) as refused:
            messages.decode(data)
        assert refused.value.code is Code.USAGE
