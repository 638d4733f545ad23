"""The description of the tables, which SQLite believes: damage is noticed before a row is read."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_damage import fill

from nativert.errors import Code, NativertError
from nativert.store import schema
from nativert.store.durable import Row, Store
from nativert.store.paths import Paths
from nativert.store.recovery import recover

OLD = sorted((Path(__file__).parents[2] / "data/store").glob("schema-*.db"))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


@pytest.fixture
def memory() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    yield connection
    connection.close()


def change(paths: Paths, old: bytes, new: bytes) -> list[Row]:
    """Fill a store and put *new* in the place of the first *old*; return the rows that it had."""
    rows = fill(paths, 3)
    data = paths.database.read_bytes()
    assert old in data
    assert len(old) == len(new)
    paths.database.write_bytes(data.replace(old, new, 1))
    return rows


def test_the_sums_are_those_of_the_tables(memory: sqlite3.Connection) -> None:
    schema.migrate(memory)
    assert schema.described(memory) == schema.MADE


@pytest.mark.parametrize("old", OLD, ids=lambda path: path.stem)
def test_a_store_of_an_older_version_has_them_afterwards(paths: Paths, old: Path) -> None:
    shutil.copy(old, paths.database)
    with Store(paths) as store:
        assert store.rows()
        assert store.check() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # No row's alias any more: a link that is there would read as none.
        (b"number    INTEGER PRIMARY", b"number    INTEGER$PRIMARY"),
        (b"run_count  INTEGER", b"run_cound  INTEGER"),
        # Not UTF-8: Python cannot even make the error that SQLite gives.
        (b"CREATE TABLE counters (name", b"CREATE TABLE counters (\xe5ame"),
        (b"CREATE TABLE links", b"CREATE\xa0TABLE links"),
    ],
)
def test_a_damaged_description_is_told_as_damage(paths: Paths, old: bytes, new: bytes) -> None:
    change(paths, old, new)
    with pytest.raises(NativertError, match="damaged") as refused:
        Store(paths)
    assert refused.value.code is Code.STORE
    recover(paths)
    with Store(paths) as store:
        store.rows()


def test_a_statement_that_became_a_blob_is_damage(paths: Paths) -> None:
    fill(paths, 3)
    connection = sqlite3.connect(paths.database)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_master SET sql = CAST(sql AS BLOB) WHERE name = 'events'")
    connection.commit()
    connection.close()
    with pytest.raises(NativertError, match="damaged"):
        Store(paths)


def test_what_an_operator_adds_is_no_damage(paths: Paths) -> None:
    rows = fill(paths, 3)
    connection = sqlite3.connect(paths.database)
    connection.execute("CREATE INDEX mine ON events (time)")
    connection.execute("ANALYZE")
    connection.close()
    with Store(paths) as store:
        assert store.rows() == rows
