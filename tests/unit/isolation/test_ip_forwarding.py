"""Who turns the host's forwarding off again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nativert.isolation.network import forwarding, sysctl
from nativert.isolation.network.forwarding import Forwarding
from nativert.isolation.network.messages import Link

DOCKER = Link(9, "docker0", "bridge", "", 0, up=True)


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A switch of its own instead of the host's."""
    values = {forwarding.FORWARD: "0"}
    monkeypatch.setattr(sysctl, "read", values.__getitem__)
    monkeypatch.setattr(sysctl, "write", values.__setitem__)
    return values


def node(path: Path, name: str, others: list[Link]) -> tuple[Forwarding, Link]:
    made = Forwarding(path / name / "ip_forward.json")
    alias = made.claim(others)
    made.turn_on()
    return made, Link(1, f"nrt-{name}", "bridge", alias, 0, up=True)


def test_what_was_off_is_turned_off(tmp_path: Path, switch: dict[str, str]) -> None:
    first, _ = node(tmp_path, "a", [])
    assert switch[forwarding.FORWARD] == "1"
    first.release([])
    assert switch[forwarding.FORWARD] == "0"
    first.release([])


def test_what_was_on_stays_on(tmp_path: Path, switch: dict[str, str]) -> None:
    switch[forwarding.FORWARD] = "1"
    first, _ = node(tmp_path, "a", [])
    first.release([])
    assert switch[forwarding.FORWARD] == "1"
    assert not first.ours()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_node_turns_it_off(
    tmp_path: Path, switch: dict[str, str], order: tuple[int, int]
) -> None:
    first, bridge = node(tmp_path, "a", [])
    second, other = node(tmp_path, "b", [bridge])
    nodes, bridges = (first, second), (bridge, other)
    nodes[order[0]].release([bridges[order[1]]])
    assert switch[forwarding.FORWARD] == "1"
    nodes[order[1]].release([])
    assert switch[forwarding.FORWARD] == "0"


def test_it_stays_for_a_foreign_bridge(tmp_path: Path, switch: dict[str, str]) -> None:
    first, _ = node(tmp_path, "a", [DOCKER])
    first.release([DOCKER])
    assert switch[forwarding.FORWARD] == "1"


def test_claiming_again_keeps_the_memory(tmp_path: Path, switch: dict[str, str]) -> None:
    node(tmp_path, "a", [])
    again, bridge = node(tmp_path, "a", [])
    assert again.ours()
    assert bridge.alias
    switch[forwarding.FORWARD] = "0"  # somebody turned it off meanwhile
    again.release([])
    assert switch[forwarding.FORWARD] == "0"


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"boot_id": "before"})])
def test_a_memory_of_another_boot_or_none_is_not_believed(
    tmp_path: Path, switch: dict[str, str], text: str
) -> None:
    path = tmp_path / "a" / "ip_forward.json"
    path.parent.mkdir()
    path.write_text(text)
    switch[forwarding.FORWARD] = "1"
    first, _ = node(tmp_path, "a", [])
    first.release([])
    assert switch[forwarding.FORWARD] == "1"
    assert not path.exists()
