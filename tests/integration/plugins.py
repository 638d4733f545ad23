"""A plugin on a real node, driven as an agent of fog05 drives it: by records and evals."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import scale
from nodes import MakeNode, make_document, until

from nativert.plugin import keys, manifest
from nativert.plugin.connector import Sample
from nativert.plugin.embedded import EmbeddedConnector
from nativert.plugin.reports import Reports
from nativert.plugin.runtime_plugin import NativePlugin
from nativert.plugin.surroundings import of_node

FDU = "5f1c2a1e-6a0e-4f0e-9b55-0d6b8a3f2c11"


class Driver:
    """The other side: puts desired records, keeps every status that came back."""

    def __init__(self, plugin: NativePlugin, connector: EmbeddedConnector) -> None:
        self.plugin = plugin
        self.connector = connector
        self.seen: list[tuple[str, str]] = []
        self.records: dict[str, list[dict[str, Any]]] = {}
        path = keys.record(keys.ACTUAL, plugin.node, plugin.uuid, "*", "*")
        self._subscription = connector.subscribe(path, self._note)

    def _note(self, sample: Sample) -> None:
        instance = keys.of_record(sample.path).instance
        record = {"status": "gone"} if sample.value is None else json.loads(sample.value)
        self.records.setdefault(instance, []).append(record)
        self.seen.append((instance, record["status"]))

    def statuses(self, instance: str) -> list[str]:
        """Every status so far, what is only refreshed once."""
        found = [record["status"] for record in self.records.get(instance, [])]
        return [word for at, word in enumerate(found) if at == 0 or found[at - 1] != word]

    def want(self, instance: str, status: str, fdu: str = FDU, **fields: object) -> None:
        path = keys.record(keys.DESIRED, self.plugin.node, self.plugin.uuid, fdu, instance)
        record = {"uuid": instance, "fdu_id": fdu, "status": status, **fields}
        self.connector.put(path, json.dumps(record).encode())

    def define(self, instance: str = "", **fields: Any) -> str:
        instance = instance or str(uuid.uuid4())
        document = make_document(**fields)
        self.connector.put(keys.descriptor(FDU), json.dumps(document | {"uuid": FDU}).encode())
        record = {n: v for n, v in document.items() if n not in ("id", "name", "native")}
        self.want(instance, "DEFINE", **record)
        return instance

    def until(self, instance: str, *statuses: str) -> None:
        """Wait until these statuses are the last ones."""
        until(
            lambda: self.statuses(instance)[-len(statuses) :] == [*statuses],
            what=f"{statuses} of {self.statuses(instance)}",
            deadline_s=scale.LONG_S,
        )

    def ask(self, instance: str, name: str, **parameters: str) -> dict[str, Any]:
        path = keys.instance_eval(self.plugin.node, self.plugin.uuid, FDU, instance, name)
        return self.connector.ask(path, parameters, timeout_s=scale.LONG_S)

    def last(self, instance: str) -> dict[str, Any]:
        return self.records[instance][-1]


@contextmanager
def plugin_on(
    make_node: MakeNode,
    hold_s: float = 0.2,
    connector: EmbeddedConnector | None = None,
    **options: Any,
) -> Iterator[Driver]:
    """A started plugin on a node of the test's root."""
    reports, connector = Reports(), connector or EmbeddedConnector()
    node = make_node(reporter=reports, **options)
    around = of_node(node, reports, connector)
    own = manifest.default(around.node_id, "native", "runtime")
    plugin = NativePlugin("native", 1, own.uuid, own, surroundings=around, hold_s=hold_s)
    driver = Driver(plugin, connector)
    plugin.start_runtime()
    try:
        yield driver
    finally:
        plugin.stop_runtime()
        around.close()
