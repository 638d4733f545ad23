"""The agent's functions for what the node itself cannot run, and for wrong parameters."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nativert.agent.fog05 import functions, paths
from nativert.agent.fog05.catalog import SharedCatalog
from nativert.agent.fog05.functions import Functions
from nativert.agent.fog05.hypervisors import Hypervisors
from nativert.agent.fog05.records import Records
from nativert.plugin import keys, manifest
from nativert.plugin.connector import Sample
from nativert.plugin.string_api import Call, arguments, methods, serve
from nativert.plugin.zenoh_connector import ZenohConnector
from nativert.plugin.zenoh_session import Settings, open_session
from nativert.store.durable import Store
from nativert.store.paths import Paths

NODE = "n1"
LXD = {
    "id": "box", "name": "box", "hypervisor": "LXD", "migration_kind": "COLD",
    "computation_requirements": {"cpu_arch": "x86_64"},
    "interfaces": [{"name": "eth0", "cp_id": "cp0"}],
    "connection_points": [{"id": "cp0", "name": "cp0"}],
    "storage": [{"id": "disk", "storage_type": "BLOCK", "size": 1}],
}  # fmt: skip


@pytest.fixture
def connector() -> Iterator[ZenohConnector]:
    spaces = (f"/alfos/{NODE}/**", f"/dlfos/{NODE}/**", f"{paths.ACTUAL}/nodes/{NODE}/**")
    one = ZenohConnector(
        open_session(Settings()), spaces=(*spaces, *paths.SHARED), complete=paths.SHARED
    )
    yield one
    one.close()


@pytest.fixture
def call(connector: ZenohConnector, tmp_path: Path) -> Iterator[Call]:
    under = Paths(tmp_path)
    under.create()
    with Store(under) as store:
        hypervisors = Hypervisors(connector, NODE)
        catalog = SharedCatalog(connector, store, NODE)
        records = Records(connector, NODE, hypervisors, lambda *_: None, lambda _: None)
        catalog.start()
        records.listen()
        own = Functions(connector, NODE, catalog, records, hypervisors, lambda _: None)
        yield serve(methods(own, functions.FUNCTIONS))
        records.close()
        catalog.close()


def test_an_fdu_of_another_plugin_is_defined_with_records_of_its_parts(
    connector: ZenohConnector, call: Call
) -> None:
    own = manifest.default(NODE, "lxd", "runtime")
    onboarded = call("onboard_fdu", arguments(descriptor=LXD))["result"]
    assert onboarded["uuid"] == str(uuid.uuid5(uuid.NAMESPACE_OID, "box"))
    assert onboarded["depends_on"] == []
    define = arguments(fdu_id=onboarded["uuid"])
    assert call("define_fdu", define)["error"] == 41
    assert call("check", arguments(descriptor=LXD))["result"]["is_compatible"] is False
    connector.put(keys.plugin(NODE, own.uuid), manifest.encode(own))

    def defined(sample: Sample) -> None:
        assert sample.value is not None
        connector.put(sample.path.replace("/dlfos", "/alfos"), sample.value)

    desired = keys.record(keys.DESIRED, NODE, own.uuid, "*", "*")
    subscription = connector.subscribe(desired, defined)
    record: dict[str, Any] = call("define_fdu", define)["result"]
    subscription.close()
    (point,) = record["connection_points"]
    assert record["interfaces"][0]["cp_id"] == point["uuid"] != point["cp_id"] == "cp0"
    assert record["storage"][0]["storage_id"] == "disk"
    assert (record["status"], record["hypervisor_info"]) == ("DEFINE", {})
    assert not {"id", "name"} & set(record)
    assert call("check", arguments(descriptor=LXD))["result"]["is_compatible"] is True


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("define_fdu", {"fdu_id": "*"}, "is not in the catalog"),
        ("define_fdu", {"fdu_id": ".."}, "is not in the catalog"),
        ("define_fdu", {}, "is required"),
        ("schedule", {"fdu_id": "*"}, "is not in the catalog"),
        ("onboard_fdu", {"descriptor": "{"}, "is not JSON"),
        ("onboard_fdu", {"descriptor": "{}"}, "id: is required"),
        ("onboard_fdu", arguments(descriptor=LXD | {"uuid": "a/b"}), "uuid"),
        ("onboard_fdu", arguments(descriptor=LXD | {"hypervisor": "BARE"}), "no storage quotas"),
    ],
)
def test_what_is_wrong_is_refused_with_a_number(
    call: Call, name: str, parameters: dict[str, str], message: str
) -> None:
    call("onboard_fdu", arguments(descriptor=LXD))
    reply = call(name, parameters)
    assert type(reply["error"]) is int
    assert reply["error"] != 0
    assert message in reply["error_msg"]
    assert call("heartbeat", {"node_id": "x"}) == {"result": {"nodeid": NODE}}


def test_a_node_without_peers_schedules_on_itself_or_refuses(
    connector: ZenohConnector, call: Call
) -> None:
    fdu = call("onboard_fdu", arguments(descriptor=LXD))["result"]["uuid"]
    reply = call("schedule", arguments(fdu_id=fdu))
    assert reply["error"] == 23
    assert "none of 0 nodes" in reply["error_msg"]
