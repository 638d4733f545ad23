from __future__ import annotations

from pathlib import Path

from nativert.store.catalog import Entry
from nativert.store.durable import Store
from nativert.store.paths import Paths


def test_what_all_nodes_have_outlives_the_process(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.create()
    first, gone = Entry("/a/x", "1/aa", '{"v":"é"}'), Entry("/a/y", "3/bb", None)
    with Store(paths) as store:
        assert store.entries() == []
        for entry in (gone, Entry("/a/x", "0/aa", "{}"), first):
            store.enter(entry)
    with Store(paths) as store:
        assert store.entries() == [first, gone]
