"""Plugins by entry point and manifest: what is broken is told, and stops nothing else."""

from __future__ import annotations

import json
import os
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast

import pytest

from nativert.errors import Code, NativertError
from nativert.plugin import loading
from nativert.plugin.embedded import EmbeddedConnector
from nativert.plugin.manifest import Manifest
from nativert.plugin.reports import Reports
from nativert.plugin.runtime_plugin import NativePlugin
from nativert.plugin.surroundings import Surroundings
from nativert.runtime.node import Node

UUID = "b9f0a7f2-5d43-4a6b-9a3e-2f6c1f0d7e44"


class Other:
    def __init__(
        self, name: str, version: int, uuid: str, manifest: Manifest, *, surroundings: Surroundings
    ) -> None:
        self.told = (name, version, uuid, manifest.configuration)

    def start_runtime(self) -> None: ...

    def stop_runtime(self) -> None: ...


def raises(*_: object, **__: object) -> Other:
    raise ZeroDivisionError("by zero")


def no_call(*_: object) -> dict[str, Any]:
    return {"error": 11, "error_msg": "nobody"}


@pytest.fixture
def around() -> Surroundings:
    return Surroundings(
        node_id="n",
        node=cast("Node", None),
        connector=EmbeddedConnector(),
        os=no_call,
        nm=no_call,
        agent=no_call,
        reports=Reports(),
    )


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=loading.GROUP)


FACTORIES = {
    "native": entry("native", "nativert.plugin.runtime_plugin:NativePlugin"),
    "other": entry("other", f"{__name__}:Other"),
    "raises": entry("raises", f"{__name__}:raises"),
    "gone": entry("gone", "no_such_module:Plugin"),
}


def write(directory: Path, file: str, **fields: object) -> None:
    path = directory / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"uuid": UUID, "name": "other", "version": 2, "type": "runtime"} | fields)
    )


def load(directory: Path | None, around: Surroundings) -> dict[str, loading.Loaded]:
    return {
        Path(one.source).name: one for one in loading.load(directory, around, factories=FACTORIES)
    }


def test_the_native_one_is_there_without_anything(around: Surroundings, tmp_path: Path) -> None:
    for directory in (None, tmp_path, tmp_path / "missing"):
        (one,) = loading.load(directory, around, factories=FACTORIES)
        assert isinstance(one.plugin, NativePlugin)
        assert (one.plugin.name, one.plugin.node) == ("native", "n")


def test_it_is_installed_under_its_name() -> None:
    assert loading.entry_points()["native"].load() is NativePlugin


def test_a_manifest_gives_uuid_and_configuration(around: Surroundings, tmp_path: Path) -> None:
    write(tmp_path, "native.json", name="native", configuration={"nodeid": "n"})
    write(tmp_path, "other/other_plugin.json", configuration={"a": 1})
    found = load(tmp_path, around)
    assert found.keys() == {"native.json", "other_plugin.json"}
    native, other = found["native.json"].plugin, found["other_plugin.json"].plugin
    assert isinstance(native, NativePlugin)
    assert native.uuid == UUID
    assert isinstance(other, Other)
    assert other.told == ("other", 2, UUID, {"a": 1})


def test_what_is_broken_is_told_and_stops_nothing(around: Surroundings, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("hello")
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "dir.json").mkdir()
    write(tmp_path, "unknown.json", name="unknown")
    write(tmp_path, "raises.json", name="raises")
    write(tmp_path, "gone.json", name="gone")
    write(tmp_path, "key.json", name="other", more=1)
    write(tmp_path, "a.json", name="other")
    write(tmp_path, "b.json", name="OTHER")
    write(tmp_path, "native.json", name="native", configuration={"nodeid": "another"})
    write(tmp_path, "writable.json", name="w")
    (tmp_path / "writable.json").chmod(0o666)
    found = load(tmp_path, around)
    told = {source: str(one.error) for source, one in found.items() if one.error}
    expected = {
        "text.json": "text.json: is not a JSON object",
        "fifo.json": "fifo.json: is not a JSON object",
        "dir.json": "Is a directory",
        "unknown.json": "no installed package offers it",
        "raises.json": "cannot be loaded: ZeroDivisionError: by zero",
        "gone.json": "cannot be loaded: ModuleNotFoundError",
        "key.json": "more: is not a known field",
        "b.json": "plugin other has a manifest already",
        "native.json": "configuration.nodeid",
        "writable.json": "others than root may write it",
    }
    assert told.keys() == expected.keys()
    for source, text in expected.items():
        assert text in told[source]
        assert found[source].plugin is None
    assert isinstance(found["a.json"].plugin, Other)


def test_a_plugin_that_misses_another_says_so(around: Surroundings) -> None:
    import dataclasses

    needy = dataclasses.replace(around, needs=("os", "network"))
    (one,) = loading.load(None, needy, factories=FACTORIES)
    assert isinstance(one.plugin, NativePlugin)
    one.plugin._stopped.set()
    with pytest.raises(NativertError, match="no plugin of type network, os") as e:
        one.plugin.start_runtime()
    assert e.value.code is Code.TIMEOUT
    one.plugin.stop_runtime()


def test_moving_an_instance_from_or_to_nowhere_is_refused(around: Surroundings) -> None:
    (one,) = loading.load(None, around, factories=FACTORIES)
    assert isinstance(one.plugin, NativePlugin)
    with pytest.raises(NativertError, match="names no node"):
        one.plugin.migrate_fdu(UUID)
    with pytest.raises(NativertError, match="it is on that node") as e:
        one.plugin.land_fdu(UUID, around.node_id)
    assert e.value.code is Code.MIGRATE
