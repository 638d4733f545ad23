"""Two sessions on loopback: what one puts and answers, the other gets."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import scale

from nativert.errors import Code, NativertError
from nativert.plugin.connector import Sample
from nativert.plugin.zenoh_connector import ZenohConnector, stamp_order
from nativert.plugin.zenoh_session import Settings, open_session

LONG = scale.LONG_S


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.fixture
def pair() -> Iterator[tuple[ZenohConnector, ZenohConnector]]:
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    one = ZenohConnector(open_session(Settings(listen=(endpoint,))), spaces=("/one/**",))
    two = ZenohConnector(open_session(Settings(connect=(endpoint,))), spaces=("/two/**",))
    ready = one.eval("/one/ready", lambda _: {"result": True})
    until(lambda: _answers(two, "/one/ready"), "the sessions find each other")
    ready.close()
    yield one, two
    two.close()
    one.close()


def _answers(connector: ZenohConnector, path: str) -> bool:
    try:
        return bool(connector.ask(path, {}, timeout_s=LONG))
    except NativertError:
        return False


Pair = tuple[ZenohConnector, ZenohConnector]


def test_a_value_is_served_by_whoever_put_it(pair: Pair) -> None:
    one, two = pair
    one.put("/one/a/info", b'{"x":1}')
    one.put("/one/b/info", b'{"x":2}')
    for connector in pair:
        found = connector.get("/one/*/info")
        assert [(s.path, s.value) for s in found] == [
            ("/one/a/info", b'{"x":1}'),
            ("/one/b/info", b'{"x":2}'),
        ]
    assert one.get("/one/a/info")[0].stamp == two.get("/one/a/info")[0].stamp
    one.delete("/one/a/info")
    one.delete("/one/a/info")
    assert [s.path for s in two.get("/one/**")] == ["/one/b/info"]


def test_a_value_outside_of_the_spaces_is_told_and_not_kept(pair: Pair) -> None:
    one, two = pair
    came: queue.SimpleQueue[Sample] = queue.SimpleQueue()
    subscription = two.subscribe("/elsewhere/*", came.put)
    deadline = time.monotonic() + LONG
    while came.empty():
        one.put("/elsewhere/x", b"1")
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert came.get().value == b"1"
    assert one.get("/elsewhere/x") == two.get("/elsewhere/x") == []
    subscription.close()
    subscription.close()


def test_a_listener_hears_puts_and_deletions_in_order(pair: Pair) -> None:
    one, two = pair
    came: queue.SimpleQueue[Sample] = queue.SimpleQueue()
    subscription = two.subscribe("/one/**", came.put)
    deadline = time.monotonic() + LONG
    while came.empty():
        one.put("/one/first", b"0")
        assert time.monotonic() < deadline
        time.sleep(0.02)
    count = scale.count(500, least=50)
    for number in range(count):
        one.put("/one/n", str(number).encode())
    one.delete("/one/n")
    heard: list[bytes | None] = []
    while not heard or heard[-1] is not None:
        sample = came.get(timeout=LONG)
        if sample.path == "/one/n":
            heard.append(sample.value)
    assert heard == [*(str(n).encode() for n in range(count)), None]
    subscription.close()


def test_who_puts_and_then_asks_sees_what_came_of_it(pair: Pair) -> None:
    one, two = pair

    def slow(sample: Sample) -> None:
        time.sleep(0.02)
        one.put("/one/answer", sample.value or b"")

    subscription = one.subscribe("/elsewhere/request", slow, ordered=True)
    until(lambda: two.put("/elsewhere/request", b"0") or two.get("/one/answer"), "it is heard")
    for number in range(1, 20):
        two.put("/elsewhere/request", str(number).encode())
        assert [s.value for s in two.get("/one/answer")] == [str(number).encode()]
    subscription.close()


def test_of_two_values_at_one_path_the_newer_is_got(pair: Pair) -> None:
    one, two = pair
    one.put("/one/x", b"old")
    old = one.get("/one/x")[0]
    one.put("/one/x", b"new")
    new = one.get("/one/x")[0]
    assert stamp_order(old.stamp) < stamp_order(new.stamp)
    assert not one.keep(old)
    assert not one.keep(new)
    assert two.get("/one/x") == [new]
    later = Sample("/one/x", None, f"{stamp_order(new.stamp)[0] + 1}/ff")
    assert one.keep(later)
    assert two.get("/one/x") == []


def test_questions_are_answered_with_their_parameters(pair: Pair) -> None:
    one, two = pair
    heard = []
    given = {"env": "A=1,B=x=y", "descriptor": '{"args":["a; b"]}', "empty": ""}

    def answer(parameters: object) -> dict[str, object]:
        heard.append(parameters)
        return {"result": "yes"}

    closing = one.eval("/one/x/start", answer)
    for path in ("/one/x/start", "/one/x/start/", "/one/*/start"):
        assert two.ask(path, given, timeout_s=LONG) == {"result": "yes"}
    assert heard == [given] * 3
    replaced = one.eval("/one/x/start", lambda _: {"result": "other"})
    closing.close()
    assert two.ask("/one/x/start", {}, timeout_s=LONG) == {"result": "other"}
    replaced.close()
    with pytest.raises(NativertError, match="nobody answers") as refused:
        two.ask("/one/x/start", {}, timeout_s=LONG)
    assert refused.value.code is Code.NOT_FOUND


def test_an_eval_outside_of_the_spaces_is_found_too(pair: Pair) -> None:
    one, two = pair
    closing = one.eval("/elsewhere/ask", lambda _: {"result": 5})
    until(lambda: _answers(two, "/elsewhere/ask"), "the declaration arrives")
    closing.close()


def test_a_long_answer_keeps_no_other_waiting(pair: Pair) -> None:
    one, two = pair
    release = threading.Event()
    count = 40

    def slow(_: object) -> dict[str, object]:
        release.wait(LONG)
        return {"result": "late"}

    one.eval("/one/slow", slow)
    one.eval("/one/quick", lambda _: {"result": "quick"})
    replies: queue.SimpleQueue[object] = queue.SimpleQueue()
    threads = [
        threading.Thread(
            target=lambda: replies.put(two.ask("/one/slow", {}, timeout_s=LONG)), daemon=True
        )
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(one._asked) == count, "all of them wait")
    assert two.ask("/one/quick", {}, timeout_s=LONG) == {"result": "quick"}
    with pytest.raises(NativertError) as late:
        two.ask("/one/slow", {}, timeout_s=0.05)
    assert late.value.code is Code.TIMEOUT
    release.set()
    for thread in threads:
        thread.join(LONG)
    assert [replies.get() for _ in threads] == [{"result": "late"}] * count


def test_an_answer_that_fails_is_an_error_with_a_number(pair: Pair) -> None:
    one, two = pair

    def fails(_: object) -> dict[str, object]:
        raise ValueError("broken")

    one.eval("/one/fails", fails)
    reply = two.ask("/one/fails", {}, timeout_s=LONG)
    assert reply == {"error": 10, "error_msg": "/one/fails: ValueError: broken"}


def test_who_waits_is_told_when_the_other_leaves(pair: Pair) -> None:
    one, two = pair
    asked, release = threading.Event(), threading.Event()

    def waits(_: object) -> dict[str, object]:
        asked.set()
        release.wait(LONG)
        return {"result": 1}

    one.eval("/one/run", waits)
    replies: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
    thread = threading.Thread(
        target=lambda: replies.put(two.ask("/one/run", {}, timeout_s=LONG)), daemon=True
    )
    thread.start()
    assert asked.wait(LONG)
    one.close()
    one.close()
    assert replies.get(timeout=LONG)["error"] == Code.NO_AGENT.fog05
    release.set()


def test_tokens_tell_who_is_alive(pair: Pair) -> None:
    one, two = pair
    changes: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
    watching = two.watch("/one/nodes/*", lambda path, here: changes.put((path, here)))
    token = one.liveliness("/one/nodes/n1")
    assert changes.get(timeout=LONG) == ("/one/nodes/n1", True)
    assert two.alive("/one/nodes/*") == one.alive("/one/nodes/*") == ["/one/nodes/n1"]
    token.close()
    assert changes.get(timeout=LONG) == ("/one/nodes/n1", False)
    assert two.alive("/one/**") == []
    watching.close()


def test_what_zenoh_cannot_say_is_refused(pair: Pair) -> None:
    one, _ = pair
    with pytest.raises(NativertError) as refused:
        one.put("/one//x", b"1")
    assert refused.value.code is Code.NETWORK
    assert "empty chunks" in refused.value.message
    assert ".rs" not in refused.value.message


def test_an_endpoint_that_is_taken_is_refused() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        endpoint = f"tcp/127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(NativertError, match=endpoint) as refused:
            open_session(Settings(listen=(endpoint,)))
    assert refused.value.code is Code.NETWORK


def test_a_key_that_zenoh_does_not_know_is_refused() -> None:
    with pytest.raises(NativertError, match="no/such/key") as refused:
        open_session(Settings(more={"no/such/key": 1}))
    assert refused.value.code is Code.USAGE


def test_a_peer_that_comes_later_is_found() -> None:
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    two = ZenohConnector(open_session(Settings(connect=(endpoint,))))
    one = ZenohConnector(open_session(Settings(listen=(endpoint,))), spaces=("/one/**",))
    one.put("/one/x", b"1")
    until(lambda: [s.value for s in two.get("/one/x")] == [b"1"], "it connects again")
    two.close()
    one.close()
