"""When a peer's session is taken for one that is open at its own end only."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from nativert.agent.nodes.half_open import HalfOpen


class Token:
    """Alive as long as somebody holds it, as Zenoh's are."""


class Connector:
    """Keeps who is to be told what is alive."""

    def __init__(self) -> None:
        self.alive: list[str] = []
        self.session: Any = self
        self.info: Any = self

    def zid(self) -> str:
        return "own"

    def peers_zid(self) -> list[str]:
        return []

    def watch(self, selector: str, listener: Any) -> Any:
        assert selector == "/nativert/sessions/*"
        self.tell = listener
        return self

    def liveliness(self, path: str) -> Any:
        self.alive.append(path)
        token = Token()
        self.token = weakref.ref(token)
        return token

    def close(self) -> None:
        pass


@pytest.fixture
def connector() -> Connector:
    return Connector()


@pytest.fixture
def watch(connector: Connector) -> HalfOpen:
    one: Any = connector
    watch = HalfOpen(one, lambda: None)
    watch.start()
    watch.close()
    assert connector.alive == ["/nativert/sessions/own"]
    return watch


def looks(watch: HalfOpen, peers: set[str], count: int) -> list[bool]:
    return [watch.look(peers) for _ in range(count)]


def test_a_peer_that_was_told_of_and_is_silent_is_found(
    connector: Connector, watch: HalfOpen
) -> None:
    connector.tell("/nativert/sessions/a", True)
    assert looks(watch, {"a"}, 5) == [False] * 5
    connector.tell("/nativert/sessions/a", False)
    assert looks(watch, {"a"}, 3) == [False, False, True]


def test_its_own_session_is_told_of_to_the_end(connector: Connector, watch: HalfOpen) -> None:
    assert connector.token() is not None


def test_a_peer_of_which_nothing_was_told_is_none_of_its_affair(watch: HalfOpen) -> None:
    assert looks(watch, {"client"}, 5) == [False] * 5


def test_a_peer_that_is_gone_is_not_found(connector: Connector, watch: HalfOpen) -> None:
    connector.tell("/nativert/sessions/a", True)
    connector.tell("/nativert/sessions/a", False)
    assert looks(watch, set(), 5) == [False] * 5


@pytest.mark.parametrize("between", [True, False], ids=["told", "gone"])
def test_silence_is_counted_from_the_last_time_it_was_heard(
    connector: Connector, watch: HalfOpen, between: bool
) -> None:
    connector.tell("/nativert/sessions/a", True)
    connector.tell("/nativert/sessions/a", False)
    assert looks(watch, {"a"}, 2) == [False, False]
    if between:
        connector.tell("/nativert/sessions/a", True)
        assert not watch.look({"a"})
        connector.tell("/nativert/sessions/a", False)
    else:
        assert not watch.look(set())
    assert looks(watch, {"a"}, 3) == [False, False, True]
