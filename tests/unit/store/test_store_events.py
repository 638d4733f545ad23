"""Events: in order whichever way they are written, kept while the disk is full, waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import scale

from nativert.errors import NativertError
from nativert.store.database import FullDiskError
from nativert.store.durable import Store
from nativert.store.paths import Paths
from nativert.store.rows import Row

UUID = "00000001-0000-4000-8000-000000000000"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


@pytest.fixture
def store(paths: Paths) -> Iterator[Store]:
    with Store(paths) as store:
        store.add(
            uuid=UUID,
            name="web",
            fdu="web",
            descriptor="{}",
            record="{}",
            desired="DEFINED",
            subnet=IPv4Network("10.70.0.0/22"),
            blocks=(0,),
            event=("defined", "{}"),
        )
        yield store


def kinds(store: Store) -> list[str]:
    return [event.kind for event in store.events()]


def test_what_was_noted_comes_before_what_is_committed_after_it(store: Store) -> None:
    store.note(UUID, "paused", "{}", told="PAUSED")
    store.note(UUID, "resumed", "{}", told="RUNNING")
    store.update(UUID, desired="CONFIGURED", event=("ended", "{}"), told="CONFIGURED")
    assert kinds(store) == ["defined", "paused", "resumed", "ended"]
    assert store.told() == {UUID: "CONFIGURED"}


def test_a_note_is_written_soon_and_by_close(store: Store, paths: Paths) -> None:
    store.note(UUID, "paused", "{}", told="PAUSED")
    with Store(paths) as other:
        assert [event.kind for event in other.wait_events(1, 5.0)] == ["paused"]
        assert other.told() == {UUID: "PAUSED"}
        store.note(UUID, "resumed", "{}", told="RUNNING")
        store.close()
        assert kinds(other)[-1] == "resumed"


def test_the_name_is_kept_after_undefine(store: Store) -> None:
    store.note(UUID, "cleaned", "{}")
    store.delete(UUID, event=("undefined", "{}"))
    assert [(event.kind, event.name) for event in store.events()] == [
        ("defined", "web"),
        ("cleaned", "web"),
        ("undefined", "web"),
    ]
    assert store.latest_event() == 3


def test_a_refused_commit_loses_nothing_that_waits(store: Store) -> None:
    store.note(UUID, "paused", "{}")
    with pytest.raises(NativertError):
        store.update("00000009-0000-4000-8000-000000000000", desired="RUNNING")
    store.flush()
    assert kinds(store) == ["defined", "paused"]


def test_on_a_full_disk_they_wait_in_order(store: Store) -> None:
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(200):
        store.note(UUID, f"kind-{number}", '{"pad": "%s"}' % ("x" * 200))
    with pytest.raises(NativertError):
        store.flush()
    store._connection.execute("PRAGMA max_page_count = 1000000")
    store.flush()
    assert kinds(store) == ["defined", *(f"kind-{number}" for number in range(200))]


def test_a_wait_is_ended_by_another_thread_and_by_its_deadline(store: Store) -> None:
    begun = time.monotonic()
    assert store.wait_events(1, 0.05) == []
    assert time.monotonic() - begun < scale.LONG_S / 2
    threading.Timer(0.1, lambda: store.append_event(UUID, "paused", "{}")).start()
    assert [event.kind for event in store.wait_events(1, 2 * scale.LONG_S)] == ["paused"]
    assert time.monotonic() - begun < scale.LONG_S


def test_many_threads_note_and_commit_and_nothing_is_lost(store: Store) -> None:
    def work(number: int) -> None:
        for step in range(50):
            store.note(UUID, "note", f'{{"of": {number}, "step": {step}}}')
            if step % 10 == 0:
                store.update(UUID, desired="RUNNING", event=("commit", "{}"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.flush()
    events = store.events(1)
    assert len(events) == 4 * 55
    assert [event.seq for event in events] == list(range(2, 2 + 4 * 55))
    for number in range(4):
        own = [event.json for event in events if f'"of": {number},' in event.json]
        assert own == [f'{{"of": {number}, "step": {step}}}' for step in range(50)]


def _runs(store: Store) -> Row:
    return store.update(UUID, desired="RUNNING", run_count=3, end=None)


def _end(store: Store, row: Row, end: str = '{"code":0}') -> Row:
    return store.note_end(row, end, ("ended", "{}"), told="CONFIGURED")


def test_an_end_is_there_for_this_process_at_once_and_soon_for_others(
    store: Store, paths: Paths
) -> None:
    ended = _end(store, _runs(store))
    assert (ended.desired, ended.end, ended.run_count) == ("CONFIGURED", '{"code":0}', 3)
    with Store(paths) as other:
        assert other.get(UUID).desired == "RUNNING"
        assert store.get(UUID) == ended
        assert kinds(store) == ["defined", "ended"]
        assert store.told() == {UUID: "CONFIGURED"}
        assert other.get(UUID) == ended
    store.flush()
    assert kinds(store) == ["defined", "ended"]


def test_an_end_that_somebody_else_has_noted_is_told_once(store: Store, paths: Paths) -> None:
    row = _runs(store)
    _end(store, row)
    with Store(paths) as other:
        other.update(UUID, desired="CONFIGURED", end='{"code":1}', event=("ended", "{}"))
        assert store.get(UUID).end == '{"code":1}'
        assert kinds(store) == ["defined", "ended"]
        # Nor is one of a run that is over.
        again = store.update(UUID, desired="RUNNING", run_count=4, end=None)
        _end(store, row)
        assert store.get(UUID) == again
    assert kinds(store) == ["defined", "ended"]


def test_an_end_comes_before_the_commit_after_it(store: Store) -> None:
    row = _runs(store)
    store.note(UUID, "paused", "{}", told="PAUSED")
    _end(store, row)
    after = store.update(UUID, desired="DEFINED", event=("cleaned", "{}"))
    assert (after.desired, after.end) == ("DEFINED", '{"code":0}')
    assert kinds(store) == ["defined", "paused", "ended", "cleaned"]


def test_an_end_of_an_instance_that_is_forgotten_is_not_told(store: Store, paths: Paths) -> None:
    row = _runs(store)
    _end(store, row)
    with Store(paths) as other:
        other.delete(UUID)
    store.flush()
    assert kinds(store) == ["defined"]


def test_an_end_waits_while_the_disk_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    row = _runs(store)
    store.flush()

    def full(*_: object, **__: object) -> None:
        raise FullDiskError("no space left", hint="")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_transaction", full)
        _end(store, row)
        # Rows are as they were: who looks finds the evidence beside them.
        assert store.get(UUID).desired == "RUNNING"
    assert store.get(UUID).desired == "CONFIGURED"
    assert kinds(store) == ["defined", "ended"]
