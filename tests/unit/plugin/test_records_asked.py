"""Records that others write, manifests, selectors and env: decoded strictly, whatever comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import Code, DescriptorError, NativertError
from nativert.fdu import descriptor as descriptors
from nativert.fdu import record as fdu_records
from nativert.plugin import keys, manifest, requests
from nativert.plugin.connector import matches
from nativert.plugin.instance_evals import parse_env

FDU = "5f1c2a1e-6a0e-4f0e-9b55-0d6b8a3f2c11"
INSTANCE = "b9f0a7f2-5d43-4a6b-9a3e-2f6c1f0d7e44"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def record(**fields: object) -> dict[str, Any]:
    """As the agent of fog05 writes one."""
    return {
        "uuid": INSTANCE,
        "fdu_id": FDU,
        "status": "DEFINE",
        "command": {"binary": "/bin/true", "args": ["-x"]},
        "storage": [],
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
        "interfaces": [
            {
                "name": "eth0",
                "is_mgmt": False,
                "if_type": "INTERNAL",
                "mac_address": "02:00:00:00:00:01",
                "virtual_interface": {"intf_type": "VIRTIO", "vpci": "0:0:0", "bandwidth": 100},
                "vintf_name": "eth0",
                "status": "CREATE",
            }
        ],
        "io_ports": [],
        "connection_points": [],
        "depends_on": [],
        "error_code": None,
        "error_msg": None,
        "migration_properties": None,
        "hypervisor_info": {},
    } | fields


def test_a_record_becomes_a_descriptor_without_a_catalog() -> None:
    found = requests.descriptor_of(record(), {})
    assert (found.id, found.name, found.fdu_uuid) == (FDU, "fdu-5f1c2a1e", FDU)
    assert found.interfaces[0].mac_address == "02:00:00:00:00:01"
    assert found.computation_requirements.ram_size_mb == 64


def test_the_catalog_has_what_a_record_has_not() -> None:
    known = {"id": "echo", "name": "echo-service", "native": {"pids": {"max": 9}}}
    found = requests.descriptor_of(record(), known)
    assert (found.id, found.name, found.native.pids.max) == ("echo", "echo-service", 9)
    carried = {"conf_type": "SCRIPT", "script": "#nativert\npids: {max: 5}\n"}
    assert requests.descriptor_of(record(configuration=carried), known).native.pids.max == 5


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"hypervisor": "LXD"}, "hypervisor"),
        ({"storage": [{"uuid": INSTANCE, "storage_id": "x"}]}, "storage"),
        ({"connection_points": [{"uuid": INSTANCE}]}, "connection_points[0].id"),
        ({"connection_points": [5]}, "connection_points[0]"),
        ({"interfaces": [{"name": "eth0", "cp_id": INSTANCE}]}, "interfaces[0].cp_id"),
        ({"interfaces": ["eth0"]}, "interfaces[0]"),
        ({"interfaces": 5}, "interfaces"),
        ({"migration_kind": "WARM"}, "migration_kind"),
        ({"command": None}, "command"),
    ],
)
def test_what_is_not_carried_out_is_refused_by_name(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(DescriptorError) as e:
        requests.descriptor_of(record(**fields), {})
    assert e.value.field == where


def test_points_and_who_is_at_them_come_back_from_a_record() -> None:
    point = {"id": "cp0", "vld_ref": INSTANCE, "cp_type": "VPORT"}
    asked = {
        "id": "a", "name": "a", "hypervisor": "BARE", "command": {"binary": "/bin/true"},
        "connection_points": [point], "interfaces": [{"name": "eth0", "cp_id": "cp0"}],
    }  # fmt: skip
    before = descriptors.decode(json.dumps(asked).encode(), source="test")
    made = fdu_records.to_builtins(fdu_records.new_record(before, INSTANCE, before.fdu_uuid))
    assert made["interfaces"][0]["cp_id"] == made["connection_points"][0]["uuid"] != "cp0"
    after = requests.descriptor_of(made, {"id": "a", "name": "a"})
    assert after.networks == before.networks == {"eth0": INSTANCE}
    assert after.interfaces == before.interfaces


def test_a_scale_without_limits_is_refused() -> None:
    with pytest.raises(NativertError, match="names no limit") as e:
        requests.change_of(record(), {})
    assert e.value.code is Code.SCALE
    assert requests.change_of(record(), {"native": {"pids": {"max": 9}}}) == {"pids_max": 9}


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b'{"uuid": 1}', b"a: b", b"\xff"])
def test_a_record_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(DescriptorError):
        requests.decode(data, "there")


@given(JSON)
def test_any_json_as_a_record_raises_nothing_else(tree: object) -> None:
    data = json.dumps(tree).encode()
    try:
        _, decoded = requests.decode(data, "there")
        requests.descriptor_of(decoded, {})
    except DescriptorError:
        pass


@given(st.dictionaries(st.sampled_from(sorted(record())), JSON))
def test_any_field_in_a_record_raises_nothing_else(fields: dict[str, Any]) -> None:
    try:
        data = json.dumps(record(**fields)).encode()
        _, decoded = requests.decode(data, "there")
        requests.descriptor_of(decoded, {})
    except DescriptorError:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_as_a_manifest_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(DescriptorError):
        manifest.decode(data, source="there")


OWN = {"uuid": INSTANCE, "name": "native", "version": 1, "type": "runtime"}


@given(st.dictionaries(st.sampled_from([*OWN, "configuration", "pid", "x"]), JSON))
def test_any_field_in_a_manifest_raises_nothing_else(fields: dict[str, Any]) -> None:
    try:
        found = manifest.decode(json.dumps(OWN | fields).encode(), source="there")
        manifest.native_configuration(found)
    except DescriptorError:
        return
    assert isinstance(found.version, int)


def test_a_manifest_as_fog05_installs_it() -> None:
    given = OWN | {
        "requirements": [],
        "description": "native",
        "url": "",
        "pid": 7,
        "configuration": {
            "ylocator": "tcp/127.0.0.1:7447",
            "nodeid": "n",
            "update_interval": "5",
            "isolation": True,
        },
    }
    found = manifest.decode(json.dumps(given).encode(), source="there")
    configuration = manifest.native_configuration(found)
    assert (configuration.nodeid, configuration.update_interval_s) == ("n", 5.0)
    told = json.loads(manifest.encode(found, pid=12, status="running"))
    assert (told["pid"], told["status"], told["uuid"]) == (12, "running", INSTANCE)
    assert manifest.default("n", "native", "runtime") == manifest.default("n", "native", "runtime")


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"uuid": "x"}, "uuid"),
        ({"name": "../x"}, "name"),
        ({"version": "1"}, "version"),
        ({"other": 1}, "other"),
        ({"configuration": {"isolation": False}}, "configuration.isolation"),
        ({"configuration": {"update_interval": "often"}}, "configuration.update_interval"),
        ({"configuration": {"update_interval": "nan"}}, "configuration.update_interval"),
        ({"configuration": {"x": 1}}, "configuration.x"),
    ],
)
def test_a_wrong_manifest_is_refused_by_path(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(DescriptorError) as e:
        manifest.native_configuration(
            manifest.decode(json.dumps(OWN | fields).encode(), source="there")
        )
    assert e.value.field == where


def test_env() -> None:
    assert parse_env("") == {}
    assert parse_env("A=1,B=x=y, C=") == {"A": "1", "B": "x=y", "C": ""}
    for text in ("A", "A=1,B", "=1", " =1"):
        with pytest.raises(DescriptorError, match="NAME=VALUE"):
            parse_env(text)


@given(st.text())
def test_any_env_raises_nothing_else(text: str) -> None:
    try:
        assert all(parse_env(text))
    except DescriptorError:
        pass


def test_selectors() -> None:
    path = keys.record(keys.DESIRED, "n", "p", FDU, INSTANCE)
    assert matches(keys.record(keys.DESIRED, "n", "p", "*", "*"), path)
    assert matches("/dlfos/**", path)
    assert matches("dlfos/n/**/info", path + "/")
    assert matches("/**", path)
    assert not matches("/dlfos/*", path)
    assert not matches(keys.record(keys.ACTUAL, "n", "p", "*", "*"), path)
    assert keys.of_record(path) == (FDU, INSTANCE)
    for other in ("", "/a/b", keys.plugin("n", "p"), path + "/more"):
        with pytest.raises(ValueError, match="not the path"):
            keys.of_record(other)
