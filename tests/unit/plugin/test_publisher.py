"""What is published of an instance, in which order, and how long an error is shown."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import scale

from nativert.errors import Code, NativertError, UnknownInstanceError
from nativert.plugin.connector import Sample
from nativert.plugin.embedded import EmbeddedConnector
from nativert.plugin.lanes import Lanes
from nativert.plugin.publisher import Publisher
from nativert.plugin.reports import Reports

DEADLINE_S = scale.LONG_S


class World:
    """Instances as a node has them, and everything that was published of them."""

    def __init__(self, hold_s: float) -> None:
        self.states: dict[str, str] = {}
        self.seen: list[tuple[str, int | None]] = []
        self.callable: list[bool] = []
        self.changed = threading.Condition()
        self.connector = EmbeddedConnector()
        self.connector.subscribe("/r/*", self._note)
        self.publisher = Publisher(
            self.connector,
            lambda _fdu, instance: f"/r/{instance}",
            self._truth,
            lambda _fdu, _instance, on: self.callable.append(on),
            hold_s=hold_s,
        )

    def _truth(self, instance: str) -> dict[str, Any]:
        state = self.states.get(instance)
        if state is None:
            raise UnknownInstanceError(instance)
        if state == "BROKEN":
            raise NativertError("the store is damaged", code=Code.STORE)
        return {"uuid": instance, "status": state, "error_code": None, "error_msg": None}

    def _note(self, sample: Sample) -> None:
        record = {"status": "gone"} if sample.value is None else json.loads(sample.value)
        with self.changed:
            self.seen.append((record["status"], record.get("error_code")))
            self.changed.notify_all()

    def until(self, *statuses: str) -> None:
        with self.changed:
            assert self.changed.wait_for(
                lambda: [status for status, _ in self.seen] == [*statuses], DEADLINE_S
            ), self.seen


@pytest.fixture
def world() -> Iterator[World]:
    one = World(hold_s=0.05)
    yield one
    one.publisher.close()


@pytest.fixture
def slow() -> Iterator[World]:
    one = World(hold_s=3600.0)
    yield one
    one.publisher.close()


def test_statuses_come_in_order_and_once(world: World) -> None:
    for status in ("DEFINE", "CONFIGURE", "CONFIGURE", "RUN", "RUN", "CONFIGURE"):
        world.states["i"] = status
        world.publisher.status("f", "i", status)
    world.publisher.look("f", "i")
    assert world.publisher.flush(DEADLINE_S)
    world.until("DEFINE", "CONFIGURE", "RUN", "CONFIGURE")
    assert world.publisher.published() == {"i": "CONFIGURE"}


def test_clean_comes_before_define_and_takes_the_evals_back(world: World) -> None:
    world.states["i"] = "DEFINE"
    for status in ("DEFINE", "CONFIGURE", "DEFINE"):
        world.publisher.status("f", "i", status)
    world.until("DEFINE", "CONFIGURE", "CLEAN", "DEFINE")
    assert world.callable == [False, True, False]


def test_undefine_deletes_the_record(world: World) -> None:
    world.states["i"] = "DEFINE"
    world.publisher.status("f", "i", "DEFINE")
    world.publisher.flush(DEADLINE_S)
    del world.states["i"]
    world.publisher.status("f", "i", "UNDEFINE")
    world.until("DEFINE", "gone")
    assert world.publisher.published() == {}


def test_an_error_is_shown_for_a_while_and_then_the_truth(world: World) -> None:
    world.states["i"] = "RUN"
    world.publisher.status("f", "i", "RUN")
    world.publisher.error("f", "i", 5, "stop failed")
    world.publisher.status("f", "i", "RUN")
    world.until("RUN", "ERROR", "RUN")
    assert world.seen == [("RUN", None), ("ERROR", 5), ("RUN", None)]


def test_a_request_ends_the_showing(slow: World) -> None:
    slow.states["i"] = "DEFINE"
    slow.publisher.error("f", "i", 6, "pause failed")
    slow.publisher.status("f", "i", "DEFINE")
    slow.publisher.flush(DEADLINE_S)
    slow.until("ERROR")
    slow.publisher.go_on("f", "i")
    slow.until("ERROR", "DEFINE")


def test_an_error_of_what_never_was_goes_with_its_record(world: World) -> None:
    world.publisher.requested("i", {"uuid": "i", "status": "DEFINE"})
    world.publisher.error("f", "i", 1, "bad")
    world.until("ERROR", "gone")


def test_closing_leaves_no_error_behind(slow: World) -> None:
    slow.states["i"] = "RUN"
    slow.publisher.error("f", "i", 5, "x")
    slow.publisher.close()
    slow.until("ERROR", "RUN")
    slow.publisher.status("f", "i", "RUN")
    slow.publisher.close()


def test_a_record_that_cannot_be_read_stops_nothing_else(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.states |= {"i": "BROKEN", "j": "RUN"}
    world.publisher.status("f", "i", "RUN")
    world.publisher.status("f", "j", "RUN")
    world.until("RUN")
    assert "instance i: cannot publish its record: the store is damaged" in caplog.text


# -- lanes -----------------------------------------------------------------------------------


def test_lanes_keep_the_order_and_do_not_wait_for_each_other() -> None:
    lanes, done, go = Lanes(), list[str](), threading.Event()
    finished = threading.Event()
    lanes.submit("a", lambda: (go.wait(DEADLINE_S), done.append("a1"))[1])
    lanes.submit("a", lambda: (done.append("a2"), finished.set())[1])
    other = threading.Event()
    lanes.submit("b", lambda: (done.append("b"), other.set())[1])
    assert other.wait(DEADLINE_S)
    assert done == ["b"]
    go.set()
    assert finished.wait(DEADLINE_S)
    assert done == ["b", "a1", "a2"]
    assert lanes.close(DEADLINE_S)
    with pytest.raises(NativertError, match="the plugin stops"):
        lanes.submit("a", lambda: None)


def test_lanes_are_bounded() -> None:
    lanes, go, begun = Lanes(), threading.Event(), threading.Event()
    try:
        lanes.submit("a", lambda: (begun.set(), go.wait(DEADLINE_S), None)[2])
        assert begun.wait(DEADLINE_S)
        with pytest.raises(NativertError, match="requests wait") as e:
            for _ in range(1000):
                lanes.submit("a", lambda: None)
        assert e.value.code is Code.BUSY
        assert not lanes.close(0.01)
    finally:
        go.set()
    assert lanes.close(DEADLINE_S)


# -- the embedded connector ------------------------------------------------------------------


def test_the_embedded_connector(until: Callable[[Callable[[], bool]], None]) -> None:
    connector, seen = EmbeddedConnector(), list[tuple[str, bytes | None]]()
    listening = connector.subscribe("/a/*/info", lambda s: seen.append((s.path, s.value)))
    connector.put("/a/1/info", b"1")
    connector.put("/a/1/other", b"2")
    connector.put("/a/1/info/", b"3")
    connector.delete("/a/1/info")
    connector.delete("/a/1/info")
    until(lambda: len(seen) == 3)
    assert seen == [("/a/1/info", b"1"), ("/a/1/info", b"3"), ("/a/1/info", None)]
    assert [s.path for s in connector.get("/a/**")] == ["/a/1/other"]
    assert connector.get("/a/1/info") == []
    listening.close()
    listening.close()
    connector.put("/a/2/info", b"4")
    assert connector.get("/a/2/info")[0].value == b"4"
    assert len(seen) == 3


def test_questions_and_liveliness() -> None:
    connector = EmbeddedConnector()
    first = connector.eval("/e", lambda p: {"result": p["a"]})
    assert connector.ask("/e/", {"a": "1"}, timeout_s=1) == {"result": "1"}
    second = connector.eval("/e", lambda _: {"result": 2})
    first.close()
    assert connector.ask("/e", {}, timeout_s=1) == {"result": 2}
    second.close()
    with pytest.raises(NativertError, match="nobody answers") as e:
        connector.ask("/e", {}, timeout_s=1)
    assert e.value.code is Code.NOT_FOUND
    token = connector.liveliness("/l/1")
    assert connector.alive("/l/*") == ["/l/1"]
    newer = connector.liveliness("/l/1")
    token.close()
    assert connector.alive("/l/*") == ["/l/1"]
    newer.close()
    newer.close()
    assert connector.alive("/**") == []


def test_reports_reach_everybody() -> None:
    told: list[tuple[object, ...]] = []

    class Listener:
        def update_fdu_status(self, *what: object) -> None:
            told.append(what)

        def write_fdu_error(self, *what: object) -> None:
            told.append(what)

    reports = Reports()
    reports.update_fdu_status("f", "i", "RUN")
    reports.add(Listener())
    reports.add(Listener())
    reports.update_fdu_status("f", "i", "RUN")
    reports.write_fdu_error("f", "i", 5, "x")
    assert told == [("f", "i", "RUN")] * 2 + [("f", "i", 5, "x")] * 2


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    def wait(ask: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not ask():
            assert time.monotonic() < end
            time.sleep(0.005)

    return wait
