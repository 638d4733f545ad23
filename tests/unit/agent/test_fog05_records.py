"""What plugins say goes to clients in order; who waits for one thing gets that and no other."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import scale

from nativert.agent.fog05 import paths
from nativert.agent.fog05.hypervisors import Hypervisors
from nativert.agent.fog05.records import Records
from nativert.errors import Code, NativertError
from nativert.plugin import keys
from nativert.plugin.zenoh_connector import ZenohConnector
from nativert.plugin.zenoh_session import Settings, open_session

NODE, PLUGIN = "n1", "5f1c2a1e-6a0e-4f0e-9b55-0d6b8a3f2c11"
FDU = "0b1d7a52-3f0e-4c55-8f3e-9a0b6f1f2d33"
ONE, OTHER = "b9f0a7f2-5d43-4a6b-9a3e-2f6c1f0d7e44", "d3a1b0c2-7e0c-4a90-8d45-1f7a5a0c3b66"


@pytest.fixture
def connector() -> Iterator[ZenohConnector]:
    spaces = (f"/alfos/{NODE}/**", f"/dlfos/{NODE}/**", f"{paths.ACTUAL}/nodes/{NODE}/**")
    one = ZenohConnector(open_session(Settings()), spaces=spaces)
    yield one
    one.close()


@pytest.fixture
def told() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def records(connector: ZenohConnector, told: list[tuple[str, Any]]) -> Iterator[Records]:
    one = Records(
        connector,
        NODE,
        Hypervisors(connector, NODE),
        lambda *_: None,
        lambda _: None,
        lambda key, record: told.append((key.instance, record and record["status"])),
    )
    one.listen()
    yield one
    one.close()


def say(connector: ZenohConnector, instance: str, status: str) -> None:
    record = {"uuid": instance, "fdu_id": FDU, "status": status, "hypervisor_info": {}}
    path = keys.record(keys.ACTUAL, NODE, PLUGIN, FDU, instance)
    connector.put(path, json.dumps(record).encode())


def until_status(records: Records, instance: str, status: str) -> None:
    deadline = time.monotonic() + scale.LONG_S
    while records.status(instance) != status:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_who_waits_for_a_record_is_not_woken_by_anothers(
    connector: ZenohConnector, records: Records
) -> None:
    found: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: found.append(records.until(ONE, scale.LONG_S)))
    waiting.start()
    for status in ("DEFINE", "CONFIGURE", "RUN"):
        say(connector, OTHER, status)
        until_status(records, OTHER, status)
    assert waiting.is_alive()
    say(connector, ONE, "DEFINE")
    waiting.join(scale.LONG_S)
    assert [one["uuid"] for one in found] == [ONE]


def test_who_waits_in_vain_is_told_so(records: Records) -> None:
    with pytest.raises(NativertError, match="has not defined it") as late:
        records.until(ONE, 0.05)
    assert late.value.code is Code.TIMEOUT


def test_each_instance_has_its_own_record_and_loses_it_alone(
    connector: ZenohConnector, records: Records, told: list[tuple[str, Any]]
) -> None:
    say(connector, ONE, "RUN")
    say(connector, OTHER, "PAUSE")
    until_status(records, OTHER, "PAUSE")
    found = connector.get(paths.instance(paths.ACTUAL, NODE, FDU, "*"))
    read = [json.loads(sample.value or b"") for sample in found]
    assert {each["uuid"]: each["status"] for each in read} == {ONE: "RUN", OTHER: "PAUSE"}
    say(connector, OTHER, "UNDEFINE")
    until_status(records, OTHER, "")
    assert records.status(ONE) == "RUN"
    assert told == [(ONE, "RUN"), (OTHER, "PAUSE"), (OTHER, None)]
