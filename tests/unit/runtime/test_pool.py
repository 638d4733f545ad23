"""Threads for what blocks: bounded, in order, and none for nothing."""

from __future__ import annotations

import threading

import pytest
import scale

from nativert.errors import Code, NativertError
from nativert.runtime.pool import Pool


def test_no_more_threads_than_asked_for() -> None:
    pool = Pool("test", 3)
    gate, running = threading.Event(), threading.Semaphore(0)

    def job() -> int:
        running.release()
        assert gate.wait(scale.LONG_S)
        return threading.get_ident()

    futures = [pool.submit(job) for _ in range(10)]
    for _ in range(3):
        assert running.acquire(timeout=scale.LONG_S)
    assert (pool.threads, pool.waiting) == (3, 7)
    assert not running.acquire(timeout=0.05)
    gate.set()
    assert len({future.result(scale.LONG_S) for future in futures}) <= 3
    assert pool.waiting == 0


def test_a_free_thread_is_used_again() -> None:
    pool = Pool("test", 64)
    for _ in range(50):
        pool.submit(threading.get_ident).result(scale.LONG_S)
    # The result is there a moment before its thread is free again.
    assert pool.threads <= 5


def test_what_a_job_raises_is_raised_where_the_result_is_read() -> None:
    def fail() -> None:
        raise LookupError("x")

    pool = Pool("test", 1)
    with pytest.raises(LookupError):
        pool.submit(fail).result(scale.LONG_S)
    assert pool.submit(lambda: 5).result(scale.LONG_S) == 5


def test_a_thread_that_cannot_be_made_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool("test", 2)
    start = threading.Thread.start

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(5):
        with pytest.raises(NativertError) as refused:
            pool.submit(lambda: 1)
        assert refused.value.code is Code.BUSY
    assert (pool.threads, pool.waiting) == (0, 0)
    monkeypatch.setattr(threading.Thread, "start", start)
    gate = threading.Event()
    first = pool.submit(lambda: gate.wait(scale.LONG_S))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    # There is one, which takes it when it is free.
    second = pool.submit(lambda: 2)
    gate.set()
    assert (first.result(scale.LONG_S), second.result(scale.LONG_S)) == (True, 2)


def test_close_waits_for_what_has_begun_and_begins_nothing() -> None:
    pool = Pool("test", 1)
    gate, began = threading.Event(), threading.Event()

    def job() -> str:
        began.set()
        assert gate.wait(scale.LONG_S)
        return "done"

    running = pool.submit(job)
    waiting = pool.submit(lambda: "never")
    assert began.wait(scale.LONG_S)
    assert not pool.close(0.05)
    assert pool.submit(lambda: "late").cancelled()
    gate.set()
    assert pool.close(scale.LONG_S)
    assert running.result(0) == "done"
    assert waiting.cancelled()
