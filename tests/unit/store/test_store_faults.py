"""What the store does when its file, its disk or its writer fails."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from nativert.errors import Code, NativertError
from nativert.store import schema
from nativert.store.durable import Row, Store
from nativert.store.paths import Paths
from nativert.store.recovery import recover

SUBNET = IPv4Network("10.70.0.0/22")
OLD = Path(__file__).parents[2] / "data/store/schema-1.db"


def uuid_of(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def add(store: Store, number: int, *, size: int = 500) -> Row:
    return store.add(
        uuid=uuid_of(number),
        name=f"n{number}",
        fdu="web",
        descriptor=json.dumps({"pad": "x" * size}),
        record="{}",
        desired="DEFINED",
        subnet=SUBNET,
        blocks=(0,),
        interfaces=("eth0",),
    )


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


def filled(paths: Paths, count: int = 20) -> list[Row]:
    with Store(paths) as store:
        return [add(store, n) for n in range(count)]


def execute(paths: Paths, statement: str, *values: object) -> None:
    connection = sqlite3.connect(paths.database)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def test_a_store_of_the_first_schema_is_brought_up_with_all_it_holds(paths: Paths) -> None:
    shutil.copy(OLD, paths.database)
    with Store(paths) as store:
        rows = store.rows()
        assert [(row.name, row.id_range, row.corrupt) for row in rows] == [
            ("web", 0x2000_0000, ""),
            ("db", 0x2001_0000, ""),
            ("sensor", 0x2002_0000, ""),
        ]
        assert rows[0].interfaces[0].address == "10.70.100.2"
        assert (rows[0].limits, rows[0].desired) == ('{"cpu_max":0.5}', "RUNNING")
        assert json.loads(rows[1].end or "") == {"reason": "exited", "exit_code": 3}
        # What is new works, and what was given out stays given out.
        assert store.append_event(rows[0].uuid, "run", "{}") == 1
        assert store.events()[0].name == "web"
        assert store.told()[rows[0].uuid] == rows[0].wanted == "RUNNING"
        new = store.add(
            uuid=uuid_of(1),
            name="new",
            fdu="new",
            descriptor="{}",
            record="{}",
            desired="DEFINED",
            subnet=IPv4Network("10.70.100.0/22"),
            blocks=(0,),
            interfaces=("eth0",),
        )
        assert new.interfaces[0].address == "10.70.100.6"
        assert new.interfaces[0].link == 5
        assert new.id_range == 0x2004_0000
        assert store.check() == []
    connection = sqlite3.connect(paths.database)
    assert schema.version(connection) == schema.VERSION
    connection.close()


def test_the_saved_store_really_is_of_the_first_schema() -> None:
    connection = sqlite3.connect(f"file:{OLD}?mode=ro&immutable=1", uri=True)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert schema.version(connection) == 1
    assert "events" not in tables
    connection.close()


def test_a_migration_that_fails_leaves_the_old_store(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(OLD, paths.database)
    broken = (*schema.MIGRATIONS[:1], ("CREATE TABLE a (b)", "CREATE NONSENSE"))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", broken)
        with pytest.raises(NativertError):
            Store(paths)
    with Store(paths) as store:
        assert len(store.rows()) == 3
        assert store.events() == []


def test_a_store_of_a_newer_schema_is_refused_and_left_alone(paths: Paths) -> None:
    filled(paths, 1)
    execute(paths, f"PRAGMA user_version = {schema.VERSION + 1}")
    before = paths.database.read_bytes()
    with pytest.raises(NativertError) as caught:
        Store(paths)
    assert caught.value.code is Code.STORE
    assert "newer" in caught.value.hint
    assert paths.database.read_bytes() == before


@pytest.mark.parametrize("column", ["descriptor", "record", "limits", "end"])
@pytest.mark.parametrize(
    "value", ["{", "", b"\xff\xfe{}", '{"a": "\udcff"}'.encode("utf-8", "surrogateescape")]
)
def test_one_damaged_row_does_not_block_the_others(
    column: str, value: str | bytes, paths: Paths
) -> None:
    rows = filled(paths, 3)
    execute(paths, f'UPDATE instances SET "{column}" = CAST(? AS TEXT) WHERE name = ?', value, "n1")
    with Store(paths) as store:
        found = store.rows()
        assert [row.corrupt for row in found] == ["", column, ""]
        assert (found[0], found[2]) == (rows[0], rows[2])
        assert store.find("n1").corrupt == column
        store.update(rows[1].uuid, **{column: "{}"})  # type: ignore[arg-type]
        assert store.get(rows[1].uuid).corrupt == ""
        store.delete(rows[1].uuid)
        assert len(store.rows()) == 2


def test_a_row_whose_uuid_is_damaged_can_be_discarded(paths: Paths) -> None:
    filled(paths, 3)
    connection = sqlite3.connect(paths.database)
    connection.execute("UPDATE instances SET uuid = CAST(? AS TEXT) WHERE name = 'n1'", (b"\xff",))
    connection.commit()
    connection.close()
    with Store(paths) as store:
        (bad,) = (row for row in store.rows() if row.corrupt)
        assert bad.corrupt == "uuid"
        assert str(bad).encode(), "it can be shown"
        store.discard(bad.seq)
        assert [row.name for row in store.rows()] == ["n0", "n2"]


def outcome(paths: Paths) -> list[Row] | Code:
    """Open, list and change; a NativertError's code, and no other kind of error."""
    try:
        with Store(paths) as store:
            rows = store.rows()
            store.append_event("i", "k", "{}")
            return rows
    except NativertError as e:
        return e.code


def test_truncation_at_any_place_is_a_typed_error_or_harmless(paths: Paths) -> None:
    rows = filled(paths)
    data = paths.database.read_bytes()
    for length in (0, 1, 15, 16, 99, 100, *range(512, len(data), 1536)):
        paths.database.write_bytes(data[:length])
        found = outcome(paths)
        if isinstance(found, Code):
            assert found is Code.STORE, length
        else:
            # A cut inside the last page reads as zeros there: rows that say so.
            assert len(found) == len(rows), length
            assert all(row in rows or row.corrupt for row in found), length
            assert [row for row in rows if row in found], length
        for side in ("-wal", "-shm"):
            Path(f"{paths.database}{side}").unlink(missing_ok=True)
    paths.database.write_bytes(data)
    assert outcome(paths) == rows


def test_flipped_bits_are_a_typed_error_or_concern_one_row_or_two(paths: Paths) -> None:
    rows = filled(paths)
    data = paths.database.read_bytes()
    for position in range(0, len(data), 397):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        paths.database.write_bytes(changed)
        found = outcome(paths)
        if isinstance(found, Code):
            assert found in (Code.STORE, Code.TIMEOUT, Code.PERMISSION), position
        else:
            assert len([row for row in found if row not in rows]) <= 2, position
        for side in ("-wal", "-shm"):
            Path(f"{paths.database}{side}").unlink(missing_ok=True)


@pytest.mark.parametrize("content", ["empty", "text", "directory"])
def test_what_is_no_store_is_refused_and_left_where_it_is(content: str, paths: Paths) -> None:
    if content == "directory":
        paths.database.mkdir()
    else:
        paths.database.write_text("" if content == "empty" else "not a database " * 100)
    with pytest.raises(NativertError) as caught:
        Store(paths)
    assert caught.value.code is Code.STORE
    assert caught.value.hint
    assert paths.database.exists()


def test_recovery_puts_the_file_aside_and_keeps_what_can_be_read(paths: Paths) -> None:
    rows = filled(paths, 60)
    data = bytearray(paths.database.read_bytes())
    # A page in the middle of the table, not one of the schema or of an index.
    middle = data.index(rows[30].uuid.encode() + b"n30") // 4096 * 4096
    data[middle : middle + 4096] = b"\xa5" * 4096
    paths.database.write_bytes(data)
    assert outcome(paths) is Code.STORE
    done = recover(paths)
    assert done.aside == paths.lib / "nativert.db.corrupt-1"
    assert done.aside.read_bytes() == bytes(data)
    assert 0 < len(done.instances) < 60
    with Store(paths) as store:
        kept = store.rows()
        assert tuple(row.uuid for row in kept) == done.instances
        assert set(kept) <= set(rows)
        assert store.check() == []
        new = add(store, 1000)
        assert new.id_range not in {row.id_range for row in kept}
        addresses = [i.address for row in store.rows() for i in row.interfaces]
        assert len(addresses) == len(set(addresses))


def test_recovery_of_a_store_of_the_first_schema(paths: Paths) -> None:
    shutil.copy(OLD, paths.database)
    assert len(recover(paths).instances) == 3
    with Store(paths) as store:
        assert store.rows()[0].wanted == "RUNNING"


def test_recovery_of_something_hopeless_begins_anew_each_time(paths: Paths) -> None:
    for n in (1, 2):
        paths.database.write_bytes(b"\0" * 5000)
        done = recover(paths)
        assert (done.aside.name, done.instances) == (f"nativert.db.corrupt-{n}", ())
        with Store(paths) as store:
            assert store.rows() == []


def test_a_full_disk_is_said_and_the_old_record_intact(paths: Paths) -> None:
    with Store(paths) as store:
        row = add(store, 1)
        connection = store._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(NativertError) as caught:
            store.update(row.uuid, descriptor=json.dumps("y" * 100_000), desired="RUNNING")
        assert caught.value.code is Code.STORE
        assert "space" in caught.value.message
        assert str(paths.lib) in caught.value.hint
        with pytest.raises(NativertError):
            add(store, 2, size=100_000)
        assert store.rows() == [row]
        # A small change still works, and everything does when there is space again.
        assert store.update(row.uuid, desired="RUNNING").desired == "RUNNING"
        connection.execute("PRAGMA max_page_count = 100000")
        add(store, 2, size=100_000)


def test_a_write_that_the_kernel_refuses_is_typed(paths: Paths) -> None:
    rows = filled(paths, 2)
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from nativert.errors import NativertError\n"
        "from nativert.store.durable import Store\n"
        "from nativert.store.paths import Paths\n"
        "store = Store(Paths(Path(sys.argv[1])))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    store.update(sys.argv[2], descriptor='[' + '1,' * 50000 + '1]')\n"
        "except NativertError as e:\n"
        "    print(e.code.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(paths.root), rows[0].uuid],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "STORE\n", done.stderr
    with Store(paths) as store:
        assert store.rows() == rows


def test_a_writer_that_holds_too_long_is_a_time_out(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = filled(paths, 1)
    monkeypatch.setattr("nativert.store.database.BUSY_TIMEOUT_S", 0.05)
    other = sqlite3.connect(paths.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with Store(paths) as store:
            assert store.rows() == rows, "readers do not wait"
            with pytest.raises(NativertError) as caught:
                store.update(rows[0].uuid, desired="RUNNING")
            assert caught.value.code is Code.TIMEOUT
    finally:
        other.close()


def test_a_killed_writer_leaves_the_last_commit(paths: Paths) -> None:
    rows = filled(paths, 1)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from nativert.store.durable import Store\n"
        "from nativert.store.paths import Paths\n"
        "store = Store(Paths(Path(sys.argv[1])))\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    store.update(sys.argv[2], run_count=n, record=str(n))\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(paths.root), rows[0].uuid],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(50):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    lines = process.communicate(timeout=60)[0].splitlines()
    with Store(paths) as store:
        row = store.get(rows[0].uuid)
        # Killed after a commit and before the answer, or not: never in between.
        last = int(lines[-1]) if lines and lines[-1].isdecimal() else 50
        assert row.run_count >= last
        assert row.record == str(row.run_count)
        assert store.check() == []


def test_many_processes_make_the_store_and_write_at_once(paths: Paths) -> None:
    script = (
        "import sys, uuid\n"
        "from ipaddress import IPv4Network\n"
        "from pathlib import Path\n"
        "from nativert.store.durable import Store\n"
        "from nativert.store.paths import Paths\n"
        "for n in range(5):\n"
        "    with Store(Paths(Path(sys.argv[1]))) as store:\n"
        "        id = str(uuid.uuid4())\n"
        "        store.add(uuid=id, name=id, fdu='f', descriptor='{}', record='{}',\n"
        "            desired='DEFINED', subnet=IPv4Network('10.70.0.0/22'), blocks=[0],\n"
        "            interfaces=['eth0'])\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(paths.root)]) for _ in range(6)
    ]
    for process in processes:
        assert process.wait(60) == 0
    with Store(paths) as store:
        rows = store.rows()
        assert len({row.id_range for row in rows}) == 30
        assert len({i.address for row in rows for i in row.interfaces}) == 30
        assert store.check() == []
    assert sorted(p.name for p in paths.lib.iterdir()) == ["i", "nativert.db", "reserve"]


def test_a_creation_that_was_cut_off_is_begun_again(paths: Paths) -> None:
    for side in ("", "-wal", "-shm"):
        Path(f"{paths.database}.new{side}").write_bytes(b"half")
    filled(paths, 1)
    assert sorted(p.name for p in paths.lib.iterdir()) == ["i", "nativert.db", "reserve"]


def test_paths_with_characters_of_uris(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "a?b#c%20d")
    paths.create()
    assert len(filled(paths, 1)) == 1
    assert paths.database.is_file()
