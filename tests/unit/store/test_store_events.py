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
from nativert.store.durable import Store
from nativert.store.paths import Paths

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
