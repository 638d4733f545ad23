from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import DescriptorError
from nativert.fdu import descriptor as descriptors
from nativert.fdu import record as records
from nativert.fdu.record import Record
from nativert.fdu.states import State

VALID = Path(__file__).parents[2] / "data" / "valid"
INSTANCE = "b9f0a7f2-5d43-4a6b-9a3e-2f6c1f0d7e44"
FDU = "5f1c2a1e-6a0e-4f0e-9b55-0d6b8a3f2c11"

# As an agent of fog05 publishes it, with everything that a record can have.
FULL: dict[str, object] = {
    "uuid": INSTANCE,
    "fdu_id": FDU,
    "status": "RUN",
    "image": {"uri": "file:///srv/a.tar.gz", "checksum": "", "format": "tar.gz", "name": "a"},
    "command": {"binary": "./bin/echo", "args": ["--port", "9000"]},
    "storage": [{"uuid": FDU, "storage_id": "data", "storage_type": "BLOCK", "size": 1}],
    "computation_requirements": {
        "cpu_arch": "x86_64",
        "cpu_min_freq": 0,
        "cpu_min_count": 1,
        "gpu_min_count": 0,
        "fpga_min_count": 0,
        "ram_size_mb": 64.0,
        "storage_size_gb": 1.0,
        "duty_cycle": 0.0,
    },
    "hypervisor": "BARE",
    "migration_kind": "COLD",
    "configuration": {"conf_type": "SCRIPT", "script": "#!/bin/sh\n"},
    "interfaces": [
        {
            "name": "eth0",
            "is_mgmt": False,
            "if_type": "INTERNAL",
            "mac_address": "02:00:00:00:00:01",
            "virtual_interface": {"intf_type": "VIRTIO", "vpci": "0:0:0", "bandwidth": 100},
            "cp_id": FDU,
            "vintf_name": "eth0",
            "status": "CONNECTED",
            "veth_face_name": "nva1b2c30",
            "properties": {"a": None},
        }
    ],
    "io_ports": [{"address": "1", "io_kind": "GPIO", "min_io_ports": 1}],
    "connection_points": [
        {"uuid": FDU, "cp_id": "cp0", "cp_type": "VPORT", "br_name": "br", "status": "CREATE"}
    ],
    "depends_on": [],
    "error_code": None,
    "error_msg": None,
    "migration_properties": None,
    "hypervisor_info": {"network": {"eth0": {"hwaddr": None}}, "cpu": {"usage": 1}},
}


def decode(tree: object) -> Record:
    return records.decode(json.dumps(tree).encode(), source="test")


def test_record_is_written_again_as_it_was_read() -> None:
    assert json.loads(records.encode(decode(FULL))) == FULL


def test_unknown_keys_are_passed_over_at_every_level() -> None:
    image = {**FULL["image"], "new": 1}  # type: ignore[dict-item]
    assert decode({**FULL, "later": {"x": 1}, "image": image}) == decode(FULL)


def test_null_and_absent_are_the_same() -> None:
    least = {"uuid": INSTANCE, "fdu_id": FDU, "status": "DEFINE"}
    nulls = {"image": None, "storage": None, "interfaces": None, "configuration": None}
    record = decode({**least, **nulls})
    assert record == decode(least)
    written = records.to_builtins(record)
    # The agent refuses null lists, the SDK a missing hypervisor_info.
    for name in ("storage", "interfaces", "io_ports", "connection_points", "depends_on"):
        assert written[name] == []
    assert written["hypervisor_info"] == {}
    assert "image" not in written
    assert written["error_code"] is None


@pytest.mark.parametrize("path", sorted(VALID.iterdir()), ids=lambda path: path.name)
def test_new_record_of_each_valid_descriptor(path: Path) -> None:
    descriptor = descriptors.decode(path.read_bytes(), source=path.name)
    record = records.new_record(descriptor, INSTANCE, descriptor.fdu_uuid)
    assert record.state is State.DEFINED
    assert (record.uuid, record.fdu_id) == (INSTANCE, descriptor.fdu_uuid)
    assert [each.vintf_name for each in record.interfaces] == [
        each.name for each in descriptor.interfaces
    ]
    assert (record.image is None) == (descriptor.image is None)
    if record.image is not None and descriptor.image is not None:
        assert record.image.uri == descriptor.image.uri
    assert records.decode(records.encode(record), source="test") == record
    # fog05 checks the form of an address or UUID that is there, so empty ones must not be.
    assert '"mac_address":""' not in records.encode(record).decode()
    assert '"uuid":""' not in records.encode(record).decode()


def test_status_changes_and_clears_a_former_error() -> None:
    record = decode(FULL)
    failed = records.with_status(record, "ERROR", error_code=4, error_msg="no such file")
    assert failed.state is None
    assert (failed.status, failed.error_code, failed.error_msg) == ("ERROR", 4, "no such file")
    restored = records.with_status(failed, State.CONFIGURED.wire)
    assert restored.state is State.CONFIGURED
    assert (restored.error_code, restored.error_msg) == (None, None)
    with pytest.raises(DescriptorError, match="cannot be 'RUNNING'"):
        records.with_status(record, "RUNNING")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"uuid": "../x"}, "uuid"),
        ({"fdu_id": ""}, "fdu_id"),
        ({"status": "RUNNING"}, "status"),
        ({"status": 1}, "status"),
        ({"command": {"args": []}}, "command"),
        ({"interfaces": [{"name": "eth0"}]}, "interfaces[0]"),
        ({"error_code": "7"}, "error_code"),
        ({"computation_requirements": {"cpu_min_count": True}}, None),
    ],
)
def test_what_is_no_record(change: dict[str, object], field: str | None) -> None:
    with pytest.raises(DescriptorError) as caught:
        decode({**FULL, **change})
    assert caught.value.field == (field or "computation_requirements.cpu_min_count")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"null", b'{"uuid": NaN}', b"\xff", b"uuid: x"])
def test_text_that_is_no_record(data: bytes) -> None:
    with pytest.raises(DescriptorError):
        records.decode(data, source="test")


text = st.text(st.characters(codec="utf-8"), max_size=12)
words = st.text(string.ascii_letters, min_size=1, max_size=8)
free = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
built = st.builds(
    Record,
    uuid=st.uuids().map(str),
    fdu_id=st.uuids().map(str),
    status=st.sampled_from(records.STATUSES),
    command=st.none() | st.builds(records.CommandRecord, binary=text, args=st.tuples(text)),
    interfaces=st.lists(
        st.builds(
            records.InterfaceRecord,
            name=words,
            vintf_name=words,
            mac_address=st.none() | text,
            properties=free,
        ),
        max_size=3,
    ).map(tuple),
    error_code=st.none() | st.integers(0, 41),
    error_msg=st.none() | text,
    migration_properties=st.none()
    | st.builds(records.MigrationProperties, source=text, destination=text),
    hypervisor_info=free,
)


@given(built)
def test_record_survives_the_round_trip(record: Record) -> None:
    assert records.decode(records.encode(record), source="test") == record


@given(st.dictionaries(st.sampled_from(sorted(FULL)), free))
def test_arbitrary_values_raise_nothing_but_descriptor_errors(change: dict[str, object]) -> None:
    try:
        record = decode({**FULL, **change})
    except DescriptorError as e:
        text = str(e)
    else:
        text = ""
        assert records.decode(records.encode(record), source="test") == record
    assert text.isprintable()
