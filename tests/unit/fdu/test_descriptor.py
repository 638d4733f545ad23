from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import DescriptorError
from nativert.fdu import document
from nativert.fdu.decoding import Part, fields
from nativert.fdu.descriptor import Command, Descriptor, Image, decode, encode, schema
from nativert.fdu.native import Native, Port, Tmpfs

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
VALID = sorted((DATA / "valid").iterdir())
INVALID = sorted(path for path in (DATA / "invalid").iterdir() if path.suffix != ".expected")

SMALLEST = {"id": "a", "name": "a", "hypervisor": "BARE", "command": {"binary": "/bin/true"}}


def read(name: str) -> Descriptor:
    return decode((DATA / "valid" / name).read_bytes(), source=name)


def with_native(**native: object) -> Descriptor:
    raw = {**SMALLEST, "interfaces": [{"name": "eth0"}], "native": native}
    return decode(json.dumps(raw).encode(), source="test")


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.name)
def test_valid_descriptor_survives_encoding(path: Path) -> None:
    descriptor = decode(path.read_bytes(), source=path.name)
    assert decode(encode(descriptor), source="encoded") == descriptor


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_invalid_descriptor_names_path_value_and_rule(path: Path) -> None:
    field, phrase = path.with_suffix(".expected").read_text().splitlines()
    with pytest.raises(DescriptorError) as caught:
        decode(path.read_bytes(), source=path.name)
    assert caught.value.field == (path.name if field == "<document>" else field)
    assert phrase in caught.value.reason
    text = str(caught.value)
    assert path.name in text
    assert text.isprintable()
    assert text.isascii()
    assert len(text) < 400


def test_smallest_descriptor_has_the_documented_defaults() -> None:
    descriptor = read("smallest.json")
    native = descriptor.native
    assert descriptor.interfaces == ()
    assert descriptor.migration_kind == "COLD"
    assert descriptor.script is None
    assert (native.user, native.workdir, native.rootfs) == (1000, "/data", "host")
    assert native.network.mode == "private"
    assert (native.stop.signal_number, native.stop.grace_s) == (15, 10.0)
    assert (native.logs.max_bytes, native.logs.files) == (10 << 20, 5)
    assert native.umask_bits == 0o022
    assert native.memory.max_bytes is None
    assert native.memory.high_bytes is None
    assert native.memory.swap_bytes is None


def test_every_native_field_reaches_its_parsed_value() -> None:
    descriptor = read("everything.yaml")
    native = descriptor.native
    assert native.env == {"MODE": "edge", "EMPTY": "", "LINES": "a\nb", "NO": "no"}
    assert (native.cpu.max, native.cpu.weight, native.cpu.cpuset) == (1.5, 200, "0-3,5")
    memory = native.memory
    assert (memory.max_bytes, memory.high_bytes, memory.swap_bytes) == (64 << 20, 48 << 20, 0)
    assert [(io.device, io.rbps_bytes, io.wbps_bytes, io.riops, io.wiops) for io in native.io] == [
        ("/dev/sda", 1 << 20, None, None, 100),
        ("8:16", None, 1024, 5, None),
    ]
    assert [mount.read_only for mount in native.mounts] == [True, True, False]
    assert native.tmpfs_mounts() == (
        Tmpfs(target="/var/log/site"),
        Tmpfs(target="/scratch", size="1.5G"),
    )
    assert native.tmpfs_mounts()[1].size_bytes == 3 << 29
    assert native.ports() == (
        Port(None, 8080, 80, "tcp"),
        Port("127.0.0.1", 8443, 443, "tcp"),
        Port(None, 53, 5353, "udp"),
    )
    assert (native.stop.signal_number, native.stop.grace_s) == (3, 90.0)
    assert native.logs.max_bytes == 64 << 10
    assert native.rlimits.limits() == (
        ("as", 1 << 30, 1 << 30),
        ("core", 0, 0),
        ("memlock", -1, -1),
        ("nofile", 1024, 1024),
        ("stack", 8 << 20, -1),
    )
    assert native.umask_bits == 0o077
    assert descriptor.script == "touch ready"
    assert descriptor.interfaces[0].virtual_interface.bandwidth == 10
    assert descriptor.interfaces[1].virtual_interface.bandwidth == 0


def test_native_object_is_taken_from_a_marked_script() -> None:
    descriptor = read("native-in-script.yaml")
    assert descriptor.native.memory.max_bytes == 32 << 20
    assert descriptor.native.pids.max == 8
    assert descriptor.script is None
    assert b'"native"' not in encode(descriptor)


@pytest.mark.parametrize("rest", ["", "\n", "\r\n", "\n# only a comment\n", "\n{}"])
def test_a_marked_script_may_be_empty(rest: str) -> None:
    raw = {**SMALLEST, "configuration": {"script": "#nativert" + rest}}
    descriptor = decode(json.dumps(raw).encode(), source="test")
    assert descriptor.native == Native()
    assert descriptor.script is None


def test_a_script_that_only_mentions_the_mark_is_a_script() -> None:
    raw = {**SMALLEST, "configuration": {"script": "#!/bin/sh\n#nativert\n"}}
    assert decode(json.dumps(raw).encode(), source="test").script == "#!/bin/sh\n#nativert\n"


def test_error_in_a_carried_native_object_says_where_it_stands() -> None:
    raw = {**SMALLEST, "configuration": {"script": "#nativert\npids: {max: 0}"}}
    with pytest.raises(DescriptorError, match=r"in configuration\.script of app\.json"):
        decode(json.dumps(raw).encode(), source="app.json")


def test_fdu_uuid_is_given_or_derived_from_the_id() -> None:
    assert read("fog05.json").fdu_uuid == "5f1c2a1e-6a0e-4f0e-9b55-0d6b8a3f2c11"
    # uuidgen --sha1 --namespace @oid --name a
    assert read("smallest.json").fdu_uuid == "d720e32d-4765-5177-b65b-42dd7f6e6445"


def test_nulls_and_empty_values_are_the_same_as_absent() -> None:
    raw = {**SMALLEST, "id": "nulls", "name": "nulls"}
    assert read("nulls.yaml") == decode(json.dumps(raw).encode(), source="test")
    empty = {"storage": [], "depends_on": [], "energy_requirements": {}, "uuid": ""}
    requirements = {"gpu_min_count": 0, "duty_cycle": 0.0}
    full = {**raw, **empty, "computation_requirements": requirements}
    assert decode(json.dumps(full).encode(), source="test") == read("nulls.yaml")


def test_false_is_not_an_empty_number() -> None:
    raw = {**SMALLEST, "computation_requirements": {"gpu_min_count": False}}
    with pytest.raises(DescriptorError, match="gpu_min_count"):
        decode(json.dumps(raw).encode(), source="test")


def test_more_than_a_mebibyte_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(DescriptorError, match="has 1048577 bytes: expected at most 1048576"):
        decode(b"{" + b" " * (1 << 20), source="big")


@pytest.mark.parametrize("data", [b'{"id": ' + b"[" * 100_000, b"[" * 100_000, b"- " * 100_000])
def test_depth_of_100_000_is_refused(data: bytes) -> None:
    with pytest.raises(DescriptorError, match="is nested deeper than 32"):
        decode(data, source="deep")


@pytest.mark.parametrize("depth", [32, 33])
def test_depth_is_counted_alike_in_json_and_yaml(depth: int) -> None:
    inner = "[" * (depth - 1) + "]" * (depth - 1)
    for text in (f'{{"a": {inner}}}', f"a: {inner}"):
        if depth > document.MAX_DEPTH:
            with pytest.raises(DescriptorError, match="is nested deeper than 32"):
                document.read(text.encode(), source="test")
        else:
            document.read(text.encode(), source="test")


@pytest.mark.parametrize(
    ("written", "kind"), [("", None), ("tgz", "tar"), ("tar.xz", "tar"), ("zip", "zip")]
)
def test_kind_of_an_image(written: str, kind: str | None) -> None:
    assert Image(uri="http://a/b", format=written).kind == kind  # type: ignore[arg-type]


def test_paths_longer_than_the_kernel_takes_are_refused() -> None:
    for path in ("/" + "a" * 256, "/a" * 2048):
        with pytest.raises(DescriptorError, match="workdir: is too long for a path"):
            Native(workdir=path)
    with pytest.raises(DescriptorError, match="binary: is longer than 4095 bytes"):
        Command(binary="/" * 4096)


def test_argument_that_execve_cannot_pass_is_refused() -> None:
    raw = {**SMALLEST, "command": {"binary": "/bin/true", "args": ["x" * 131072]}}
    with pytest.raises(DescriptorError) as caught:
        decode(json.dumps(raw).encode(), source="test")
    assert caught.value.field == "command.args[0]"
    assert caught.value.reason == "is longer than 131071 bytes"


def test_variable_that_execve_cannot_pass_is_refused() -> None:
    with pytest.raises(DescriptorError, match="env: 'A' is longer than 131071 bytes"):
        with_native(env={"A": "x" * 131070})
    assert with_native(env={"A": "x" * 131069}).native.env


def test_more_values_than_a_descriptor_can_have_are_refused() -> None:
    with pytest.raises(DescriptorError, match="more than 65536 values"):
        decode(b'{"id": [' + b"1," * 65536 + b"1]}", source="many")


def test_ports_of_two_addresses_or_protocols_do_not_collide() -> None:
    ports = ["127.0.0.1:80:80", "127.0.0.2:80:80", "80:80/udp"]
    assert len(with_native(network={"ports": ports}).native.ports()) == 3


def test_construction_in_python_is_checked_too() -> None:
    with pytest.raises(DescriptorError, match="workdir"):
        Native(workdir="../x")
    with pytest.raises(ValueError, match="workdir"):
        Native(workdir="../x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"),
        ("22:22", "22:22"),
        ("2020-01-01", "2020-01-01"),
        ("0x10", 16),
        ("0o17", 15),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("! 1", "1"),
        ("-.5e1", -5.0),
        ("TRUE", True),
        ("~", None),
        ("[a, [b]]", ["a", ["b"]]),
        ("{1: 2, null: 3}", {"1": 2, "null": 3}),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_yaml_follows_the_core_schema(text: str, expected: object) -> None:
    assert document.read(f"key: {text}".encode(), source="test") == {"key": expected}


def test_byte_order_mark_is_no_part_of_the_text() -> None:
    data = b"\xef\xbb\xbf" + json.dumps(SMALLEST).encode()
    assert decode(data, source="test").id == "a"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
known_keys = sorted({key for kind in (Descriptor, Native) for key in fields(kind)})


@given(st.binary())
def test_arbitrary_bytes_raise_nothing_but_descriptor_errors(data: bytes) -> None:
    with pytest.raises(DescriptorError):
        decode(data, source="fuzz")


@given(st.text())
def test_arbitrary_text_raises_nothing_but_descriptor_errors(text: str) -> None:
    with pytest.raises(DescriptorError):
        decode(text.encode(errors="surrogatepass"), source="fuzz")


@given(st.dictionaries(st.sampled_from(known_keys), json_values), st.booleans())
def test_arbitrary_values_of_known_fields_raise_nothing_else(
    change: dict[str, object], inside: bool
) -> None:
    raw = {**SMALLEST, "native": change} if inside else {**SMALLEST, **change}
    try:
        descriptor = decode(json.dumps(raw).encode(), source="fuzz")
    except DescriptorError as e:
        text = str(e)
    else:
        text = ""
        assert decode(encode(descriptor), source="again") == descriptor
    assert text.isprintable()


@given(st.text(alphabet="{}[]:,-&*!|>'\"#%@`?~ \n\tab01.\\ux", max_size=60))
def test_yaml_punctuation_raises_nothing_else(text: str) -> None:
    with pytest.raises(DescriptorError):
        decode(text.encode(), source="fuzz")


@pytest.mark.parametrize("path", [*VALID, *INVALID], ids=lambda path: path.name)
def test_yaml_without_its_c_part_decides_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = path.read_bytes()
    expected: object
    try:
        expected = decode(data, source="same")
    except DescriptorError as e:
        expected = e.field
    monkeypatch.delattr("yaml.CSafeLoader", raising=False)
    found: object
    try:
        found = decode(data, source="same")
    except DescriptorError as e:
        found = e.field
    assert found == expected


def parts(kind: type[Part]) -> set[type[Part]]:
    found = {kind}
    for field in fields(kind).values():
        if field.part is not None:
            found |= parts(field.part)
    return found


def paths(kind: type[Part], prefix: str = "") -> set[str]:
    found = {prefix + key for key in kind.REFUSED}
    for key, field in fields(kind).items():
        found |= paths(field.part, f"{prefix}{key}.") if field.part else {prefix + key}
    return found


def test_page_of_the_fields_has_every_field_and_refused_word() -> None:
    page = (ROOT / "docs" / "descriptor.md").read_text()
    for path in paths(Descriptor):
        if path.startswith("native.rlimits."):
            assert path.split(".")[2] in page
        else:
            assert f"`{path}`" in page, path
    for kind in parts(Descriptor):
        for words in kind.REFUSED_VALUES.values():
            assert all(word in page for word in words)


def test_schema_knows_every_field_and_refuses_the_rest() -> None:
    tree = schema()
    assert tree["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    json.dumps(tree, allow_nan=False)
    for kind in parts(Descriptor):
        definition = tree["$defs"][kind.__name__]
        assert definition["additionalProperties"] is False
        assert set(definition["properties"]) == {*fields(kind), *kind.REFUSED}
    assert sorted(tree["$defs"]["Descriptor"]["required"]) == ["hypervisor", "id", "name"]


def test_schema_agrees_with_decode_on_the_data() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    for path in VALID:
        validator.validate(document.read(path.read_bytes(), source=path.name))


def test_import_leaves_the_parsers_of_text_alone() -> None:
    code = "import sys, nativert.fdu.record; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint({"yaml", "json", "ipaddress", "urllib"})


def test_descriptor_can_be_shared_between_threads() -> None:
    descriptor = read("everything.yaml")
    with pytest.raises(AttributeError, match="immutable"):
        descriptor.name = "other"  # type: ignore[misc]
    assert msgspec.structs.replace(descriptor, name="other").name == "other"
