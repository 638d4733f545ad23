"""A stand-in for fog05's own agent and its store, as strict as that is, over Zenoh alone."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

import scale
import zenoh
from zenoh.handlers import Callback

LONG = scale.LONG_S
_STRICT = ("uuid", "fdu_id", "status", "hypervisor", "migration_kind", "hypervisor_info")
_LISTS = ("storage", "interfaces", "io_ports", "connection_points", "depends_on")


class AgentDouble:
    """Keeps every value of the trees; copies records, forgets what does not parse."""

    def __init__(self, port: int, node_id: str) -> None:
        config = {
            "mode": "peer",
            "listen": {"endpoints": [f"tcp/127.0.0.1:{port}"]},
            "scouting": {"multicast": {"enabled": False}},
        }
        self.node_id = node_id
        self.changed = threading.Condition()
        self.values: dict[str, str] = {}
        self.lost: list[str] = []
        self.statuses: dict[str, list[str]] = {}
        self.catalog: dict[str, Any] = {}
        self.session = zenoh.open(zenoh.Config.from_json5(json.dumps(config)))
        self._kept: list[Any] = []
        for tree in ("alfos", "dlfos"):
            took = Callback(self._put, indirect=False)
            self._kept.append(self.session.declare_subscriber(f"{tree}/**", took))
            asked = Callback(self._get, indirect=False)
            self._kept.append(self.session.declare_queryable(f"{tree}/**", asked))
        self.values[f"alfos/{node_id}/configuration"] = json.dumps({"agent": {"path": "/var/fos"}})
        self.values[f"alfos/{node_id}/os/info"] = json.dumps({"name": "linux"})

    def close(self) -> None:
        self.session.close()

    def _put(self, sample: zenoh.Sample) -> None:
        key = str(sample.key_expr)
        with self.changed:
            if sample.kind == zenoh.SampleKind.DELETE:
                self.values.pop(key, None)
            else:
                self.values[key] = sample.payload.to_string()
            if "/instances/" in key and key.startswith("alfos"):
                self._record(key)
            self.changed.notify_all()

    def _record(self, key: str) -> None:
        instance = key.split("/")[7]
        said = self.statuses.setdefault(instance, [])
        if key not in self.values:
            said.append("gone")
            return
        record = json.loads(self.values[key])
        strict = all(record.get(name) is not None for name in (*_STRICT, *_LISTS))
        code = record.get("error_code")
        if not strict or not (code is None or type(code) is int):
            self.lost.append(self.values[key])
        elif not said or said[-1] != record["status"]:
            said.append(record["status"])

    def _get(self, query: zenoh.Query) -> None:
        asked = query.key_expr
        function = str(asked).rpartition(f"alfos/{self.node_id}/agent/exec/")[2]
        if function == "get_fdu_info":
            fdu = str(query.parameters).partition("=")[2]
            found = self.catalog.get(fdu)
            reply = {"result": found} if found else {"error": 11, "error_msg": "not found"}
            query.reply(str(asked), json.dumps(reply))
            return
        with self.changed:
            found = [(key, value) for key, value in self.values.items()
                     if asked.intersects(zenoh.KeyExpr(key))]  # fmt: skip
        for key, value in found:
            query.reply(key, value)

    # -- what clients have it do ---------------------------------------------------------

    def wait(self, true: Callable[[], Any], what: str) -> Any:
        with self.changed:
            assert self.changed.wait_for(true, LONG), f"{what}: {self.statuses} {self.lost}"
            return true()

    def plugin(self) -> dict[str, Any]:
        """The manifest of the one runtime plugin; waits for it."""
        prefix = f"alfos/{self.node_id}/plugins/"
        key = self.wait(lambda: next((k for k in self.values if k.startswith(prefix)), None),
                        "a plugin")  # fmt: skip
        found: dict[str, Any] = json.loads(self.values[key])
        return found

    def path(self, tree: str, instance: str, fdu: str, leaf: str = "info") -> str:
        plugin = self.plugin()["uuid"]
        below = f"runtimes/{plugin}/fdu/{fdu}/instances/{instance}/{leaf}"
        return f"{tree}/{self.node_id}/{below}"

    def define(self, descriptor: dict[str, Any]) -> tuple[str, str]:
        """Return FDU and instance, when the plugin says that it is defined."""
        fdu, instance = descriptor["uuid"], str(uuid.uuid4())
        self.catalog[fdu] = descriptor
        record = {name: value for name, value in descriptor.items() if name not in ("id", "name")}
        record |= {"fdu_id": fdu, "uuid": instance, "hypervisor_info": {}}
        self.want(fdu, instance, "DEFINE", record)
        self.until(instance, "DEFINE")
        return fdu, instance

    def want(
        self, fdu: str, instance: str, status: str, record: dict[str, Any] | None = None
    ) -> None:
        """Write a whole record with another status, as the agent copies it from clients."""
        if record is None:
            record = json.loads(self.values[self.path("alfos", instance, fdu)])
        key = self.path("dlfos", instance, fdu)
        text = json.dumps(record | {"status": status})
        self.values[key] = text
        self.session.put(key, text, congestion_control=zenoh.CongestionControl.BLOCK)

    def until(self, instance: str, *statuses: str) -> None:
        self.wait(
            lambda: self.statuses.get(instance, [])[-len(statuses) :] == [*statuses],
            f"{statuses}",
        )

    def ask(self, fdu: str, instance: str, name: str, parameters: str = "") -> dict[str, Any]:
        """Ask an instance; an error that is no number is what the agent cannot read."""
        selector = zenoh.Selector(self.path("alfos", instance, fdu, name), parameters)
        for reply in self.session.get(selector, target=zenoh.QueryTarget.ALL, timeout=LONG):
            if reply.ok is not None:
                found: dict[str, Any] = json.loads(reply.ok.payload.to_string())
                assert type(found.get("error", 1)) is int
                return found
        raise AssertionError(f"nobody answers {selector}")
