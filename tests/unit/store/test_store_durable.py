"""The durable records: what is asked for, found again, and given back."""

from __future__ import annotations

import threading
import uuid as uuids
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nativert.errors import Code, DescriptorError, NativertError, UnknownInstanceError
from nativert.store import durable, journal
from nativert.store.boot import boot_id
from nativert.store.durable import Row, Store
from nativert.store.paths import Paths

SUBNET = IPv4Network("10.70.0.0/22")


def uuid_of(number: int) -> str:
    return str(uuids.UUID(int=number))


def add(store: Store, uuid: str, name: str = "", **changes: object) -> Row:
    arguments: dict[str, object] = {
        "uuid": uuid,
        "name": name or f"name-{uuid}",
        "fdu": "web",
        "descriptor": '{"id": "web"}',
        "record": '{"status": "DEFINE"}',
        "desired": "DEFINED",
        "subnet": SUBNET,
        "blocks": (0,),
        "interfaces": (),
    }
    return store.add(**(arguments | changes))  # type: ignore[arg-type]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


@pytest.fixture
def store(paths: Paths) -> Iterator[Store]:
    with Store(paths) as store:
        yield store


def test_a_row_comes_back_as_added(store: Store) -> None:
    uuid = uuid_of(1)
    row = add(store, uuid, "web", interfaces=("eth1", "eth0"), limits='{"pids_max": 3}')
    assert store.get(uuid) == row
    assert store.rows() == [row]
    assert (row.uuid, row.name, row.fdu, row.desired) == (uuid, "web", "web", "DEFINED")
    assert (row.descriptor, row.record) == ('{"id": "web"}', '{"status": "DEFINE"}')
    assert (row.limits, row.end, row.run_count, row.corrupt) == ('{"pids_max": 3}', None, 0, "")
    assert row.boot_id == boot_id()
    assert row.id_range == 0x2000_0000
    assert [(i.name, i.address, i.link) for i in row.interfaces] == [
        ("eth1", "10.70.0.2", 1),
        ("eth0", "10.70.0.3", 2),
    ]


def test_what_was_added_is_there_in_a_new_process(paths: Paths) -> None:
    with Store(paths) as store:
        row = add(store, uuid_of(1), interfaces=("eth0",))
    with Store(paths) as store:
        assert store.rows() == [row]
    assert sorted(p.name for p in paths.lib.iterdir() if p.is_file()) == ["nativert.db", "reserve"]
    assert paths.database.stat().st_mode & 0o777 == 0o600


def test_update_changes_what_it_names_and_nothing_else(store: Store) -> None:
    first, other = add(store, uuid_of(1), limits="{}"), add(store, uuid_of(2))
    changed = store.update(
        first.uuid, desired="RUNNING", run_count=1, limits=None, end='{"exit_code": 0}'
    )
    assert changed == store.get(first.uuid)
    assert (changed.desired, changed.run_count, changed.limits) == ("RUNNING", 1, None)
    assert changed.end == '{"exit_code": 0}'
    assert (changed.record, changed.id_range) == (first.record, first.id_range)
    assert store.get(other.uuid) == other
    with pytest.raises(UnknownInstanceError):
        store.update(uuid_of(3), desired="RUNNING")
    with pytest.raises(TypeError):
        store.update(first.uuid, id_range=1)  # type: ignore[call-arg]


def test_a_change_carries_the_boot_that_made_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = add(store, uuid_of(1))
    monkeypatch.setattr(durable, "boot_id", lambda: "next")
    assert store.get(row.uuid).boot_id == boot_id()
    assert store.update(row.uuid, desired="DEFINED").boot_id == "next"


def test_a_name_and_a_uuid_are_taken_once(store: Store) -> None:
    add(store, uuid_of(1), "web", interfaces=("eth0",))
    for uuid, name, told in ((uuid_of(2), "web", uuid_of(1)), (uuid_of(1), "other", "web")):
        with pytest.raises(NativertError) as caught:
            add(store, uuid, name, interfaces=("eth0",))
        assert caught.value.code is Code.NAME_TAKEN
        assert told in caught.value.message
    assert len(store.rows()) == 1
    assert add(store, uuid_of(2), "other", interfaces=("eth0",)).interfaces[0].link == 2


@pytest.mark.parametrize("uuid", ["", "..", "A" * 36, "web"])
def test_what_is_no_uuid_is_not_entered(uuid: str, store: Store) -> None:
    with pytest.raises(DescriptorError):
        add(store, uuid, "web")
    assert store.rows() == []


def test_two_interfaces_of_one_name_are_refused(store: Store) -> None:
    with pytest.raises(DescriptorError):
        add(store, uuid_of(1), interfaces=("eth0", "eth0"))
    assert store.rows() == []


def test_deleting_gives_everything_back(store: Store) -> None:
    row = add(store, uuid_of(1), "web", interfaces=("eth0",))
    store.delete(row.uuid)
    assert store.rows() == []
    for call in (store.get, store.delete, store.find):
        with pytest.raises(UnknownInstanceError):
            call(row.uuid)
    again = add(store, row.uuid, "web", interfaces=("eth0",))
    # Not at once: the kernel or a peer may still know the old ones.
    assert again.interfaces[0].address != row.interfaces[0].address
    assert again.interfaces[0].link != row.interfaces[0].link
    assert again.id_range != row.id_range


def test_addresses_end_before_the_broadcast_and_the_oldest_comes_back(store: Store) -> None:
    subnet = IPv4Network("10.70.0.0/29")
    rows = [add(store, uuid_of(n), interfaces=("eth0",), subnet=subnet) for n in range(1, 6)]
    assert [row.interfaces[0].address for row in rows] == [f"10.70.0.{n}" for n in range(2, 7)]
    with pytest.raises(NativertError) as caught:
        add(store, uuid_of(9), interfaces=("eth0",), subnet=subnet)
    assert caught.value.code is Code.ADDRESS_EXHAUSTED
    assert len(store.rows()) == 5
    for row in (rows[3], rows[1]):
        store.delete(row.uuid)
    again = [add(store, uuid_of(n), interfaces=("eth0",), subnet=subnet) for n in (10, 11)]
    assert [row.interfaces[0].address for row in again] == ["10.70.0.5", "10.70.0.3"]


def test_all_of_a_22_can_be_in_use(store: Store) -> None:
    names = [f"eth{n}" for n in range(1021)]
    row = add(store, uuid_of(1), interfaces=names)
    addresses = {IPv4Address(i.address) for i in row.interfaces}
    assert addresses == set(SUBNET.hosts()) - {SUBNET[1]}
    with pytest.raises(NativertError):
        add(store, uuid_of(2), interfaces=("eth0",))


def test_a_new_block_of_ids_is_asked_for_when_the_last_range_is_given(store: Store) -> None:
    asked: list[int] = []

    def more() -> tuple[int, ...]:
        asked.append(1)
        return (0, 5)

    found = {add(store, uuid_of(n), more_blocks=more).id_range for n in range(1, 257)}
    assert len(found) == 256
    assert not asked
    assert add(store, uuid_of(300), more_blocks=more).id_range == 0x2500_0000
    assert asked == [1]
    with pytest.raises(NativertError) as caught:
        add(store, uuid_of(301))
    assert caught.value.code is Code.IDS_EXHAUSTED


def test_link_numbers_go_round_at_the_length_of_a_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nativert.store.allocation.MAX_LINK", 3)
    kept = add(store, uuid_of(1), interfaces=("eth0",))
    numbers = []
    for n in range(2, 6):
        row = add(store, uuid_of(n), interfaces=("eth0",))
        numbers.append(row.interfaces[0].link)
        store.delete(row.uuid)
    assert kept.interfaces[0].link == 1
    assert numbers == [2, 3, 2, 3]


def test_find_by_uuid_name_and_prefix(store: Store) -> None:
    a = add(store, "0b6f8a5e-0000-4000-8000-000000000001", "web")
    b = add(store, "0b6f8a5e-0000-4000-8000-000000000002", "0b6f")
    c = add(store, "c0000000-0000-4000-8000-000000000003", a.uuid)
    assert store.find("web") == a
    assert store.find("0b6f") == b, "a name wins over a prefix"
    assert store.find(a.uuid) == a, "a UUID wins over a name"
    assert store.find("c") == c
    assert store.find("C0000000-0000") == c
    for ref in ("", "nothing", "d", "0b6f8a5e-0000-4000-8000-000000000001x", "%", "_", "0b6f\0"):
        with pytest.raises(UnknownInstanceError):
            store.find(ref)
    with pytest.raises(NativertError) as caught:
        store.find("0b6f8")
    assert caught.value.code is Code.AMBIGUOUS
    assert f"{a.uuid} (web)" in caught.value.message
    assert b.uuid in caught.value.message


def test_only_some_of_many_candidates_are_listed(store: Store) -> None:
    for n in range(8):
        add(store, uuid_of(n))
    with pytest.raises(NativertError, match=r"8 instances begin so.*and 3 more"):
        store.find("0")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    known=st.dictionaries(
        # Few distinct digits, so that prefixes collide.
        st.text("0a", min_size=8, max_size=8).map(lambda d: f"{d}-0000-4000-8000-000000000000"),
        st.text("0ag-", min_size=1, max_size=9),
        max_size=6,
    ).filter(lambda known: len(set(known.values())) == len(known)),
    refs=st.lists(st.text("0ag-", max_size=10), max_size=8),
)
def test_find_never_finds_the_wrong_one(
    known: dict[str, str], refs: list[str], store: Store
) -> None:
    for row in store.rows():
        store.delete(row.uuid)
    for uuid, name in known.items():
        add(store, uuid, name)
    for ref in [*refs, *known, *known.values()]:
        named = [uuid for uuid, name in known.items() if name == ref]
        begin = [uuid for uuid in known if ref and uuid.startswith(ref)]
        expected = [ref] if ref in known else named or begin
        if len(expected) == 1:
            assert store.find(ref).uuid == expected[0]
        else:
            with pytest.raises(NativertError) as caught:
                store.find(ref)
            assert caught.value.code is (Code.AMBIGUOUS if expected else Code.NOT_FOUND)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), max_size=30),
)
def test_nothing_is_given_to_two_instances(steps: list[tuple[int, int]], store: Store) -> None:
    for row in store.rows():
        store.delete(row.uuid)
    live: set[str] = set()
    for number, count in steps:
        uuid = uuid_of(number)
        if uuid in live:
            store.delete(uuid)
            live.discard(uuid)
        else:
            try:
                names = [f"eth{n}" for n in range(count)]
                add(store, uuid, interfaces=names, subnet=IPv4Network("10.70.0.0/28"))
                live.add(uuid)
            except NativertError as error:
                if error.code is not Code.ADDRESS_EXHAUSTED:
                    raise
        rows = store.rows()
        assert {row.uuid for row in rows} == live
        given_out = [i for row in rows for i in row.interfaces]
        for values in (
            [row.id_range for row in rows],
            [i.address for i in given_out],
            [i.link for i in given_out],
        ):
            assert len(values) == len(set(values))


def test_events_are_numbered_kept_and_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_EVENTS", 5)
    uuid = uuid_of(1)
    add(store, uuid, event=("define", "{}"))
    store.update(uuid, desired="RUNNING", event=("run", '{"pid": 3}'))
    store.delete(uuid, event=("undefine", "{}"))
    assert [(e.seq, e.kind, e.instance) for e in store.events()] == [
        (1, "define", uuid),
        (2, "run", uuid),
        (3, "undefine", uuid),
    ]
    assert [store.append_event(uuid, "n", "{}") for _ in range(4)] == [4, 5, 6, 7]
    assert [e.seq for e in store.events()] == [3, 4, 5, 6, 7]
    assert [e.seq for e in store.events(5)] == [6, 7]
    assert [e.seq for e in store.events(limit=2)] == [3, 4]
    assert store.events(7) == []


def test_a_refused_change_leaves_no_event(store: Store) -> None:
    with pytest.raises(UnknownInstanceError):
        store.update(uuid_of(1), desired="RUNNING", event=("run", "{}"))
    with pytest.raises(UnknownInstanceError):
        store.delete(uuid_of(1), event=("undefine", "{}"))
    assert store.events() == []


def test_threads_share_one_store(store: Store) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for n in range(20):
                uuid = uuid_of(number * 100 + n)
                add(store, uuid, interfaces=("eth0",))
                store.update(uuid, desired="RUNNING")
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    rows = store.rows()
    assert len({row.id_range for row in rows}) == 80
    assert {row.desired for row in rows} == {"RUNNING"}


def test_a_sound_store_checks_out(store: Store) -> None:
    add(store, uuid_of(1), interfaces=("eth0",))
    assert store.check() == []
