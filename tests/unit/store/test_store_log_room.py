"""The log of a store that is written to often: as long as it gets, before it is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import scale

from nativert.store import journal
from nativert.store.durable import Store
from nativert.store.paths import Paths

LENGTH = journal._LOG_BYTES


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "node")
    paths.create()
    return paths


def log(paths: Paths) -> Path:
    return paths.database.with_name(f"{paths.database.name}-wal")


def until_long(paths: Paths) -> None:
    deadline = time.monotonic() + scale.LONG_S
    while log(paths).stat().st_size < LENGTH:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def note(store: Store, first: int, count: int) -> None:
    for number in range(first, first + count):
        store.append_event("", "made", f'{{"number":{number}}}')


def numbers(store: Store) -> list[int]:
    return [int(event.json[10:-1]) for event in store.events(limit=10_000) if event.kind == "made"]


def test_what_stands_before_it_is_read_also_after_a_power_cut(paths: Paths, tmp_path: Path) -> None:
    with Store(paths) as store:
        note(store, 0, journal._MANY)
        store.note("", "woken", "{}")
        until_long(paths)
        note(store, journal._MANY, 10)
        # As they are now, and no process that would end well.
        other = Paths(tmp_path / "other")
        other.create()
        for name in os.listdir(paths.lib):
            if (paths.lib / name).is_file() and not name.endswith("-shm"):
                shutil.copy(paths.lib / name, other.lib / name)
    with Store(other) as store:
        assert numbers(store) == list(range(journal._MANY + 10))
        assert store.check() == []
    with Store(paths) as store:
        assert numbers(store) == list(range(journal._MANY + 10))


def test_a_command_that_commits_little_makes_none(paths: Paths) -> None:
    with Store(paths) as store:
        note(store, 0, 3)
        store.note("", "woken", "{}")
        while len(store.events()) < 4:
            time.sleep(0.01)
        time.sleep(0.1)
        assert log(paths).stat().st_size < LENGTH // 4


def test_where_little_is_free_nothing_is_taken(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_ENOUGH", 1 << 60)
    with Store(paths) as store:
        note(store, 0, journal._MANY)
        store.note("", "woken", "{}")
        time.sleep(0.3)
        assert log(paths).stat().st_size < LENGTH // 2
        assert numbers(store) == list(range(journal._MANY))


WRITE = """
import sys
from pathlib import Path
from nativert.store.durable import Store
from nativert.store.paths import Paths
first = int(sys.argv[2])
with Store(Paths(Path(sys.argv[1]))) as store:
    for number in range(first, first + 150):
        store.append_event("", "made", f'{{"number":{number}}}')
"""


def test_others_write_meanwhile(paths: Paths) -> None:
    root = paths.root
    assert root is not None
    with Store(paths) as store:
        note(store, 0, journal._MANY)
        processes = [
            subprocess.Popen([sys.executable, "-c", WRITE, str(root), str(1000 * n)])
            for n in (1, 2)
        ]
        threads = [threading.Thread(target=note, args=(store, 1000 * n, 150)) for n in (3, 4)]
        for thread in threads:
            thread.start()
        store.note("", "woken", "{}")
        for thread in threads:
            thread.join(scale.LONG_S)
        assert [process.wait(scale.LONG_S) for process in processes] == [0, 0]
        until_long(paths)
        expected = [*range(journal._MANY)]
        for n in (1, 2, 3, 4):
            expected += range(1000 * n, 1000 * n + 150)
        assert sorted(numbers(store)) == expected
        assert store.check() == []
