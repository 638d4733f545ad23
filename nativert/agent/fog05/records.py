"""An agent's middle part: what clients desire goes to plugins, what plugins say goes to clients.

Everything about one instance goes through here in order. A client that asks anew must not see
the error of its request before: that one is taken away before the request goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from nativert.agent.fog05 import paths
from nativert.agent.fog05.hypervisors import Hypervisors
from nativert.agent.logs import LOGGER
from nativert.errors import Code, NativertError
from nativert.plugin import keys, requests
from nativert.plugin.connector import Sample
from nativert.plugin.zenoh_connector import ZenohConnector, stamp_order

_SETTLE_S: Final = 5.0


class Records:
    """`appears` is told (fdu, instance, plugin), `vanishes` (instance), `told` each record."""

    def __init__(
        self,
        connector: ZenohConnector,
        node_id: str,
        hypervisors: Hypervisors,
        appears: Callable[[str, str, str], None],
        vanishes: Callable[[str], None],
        told: Callable[[keys.InstanceKey, dict[str, Any] | None], None] = lambda *_: None,
    ) -> None:
        self._connector = connector
        self._node_id = node_id
        self._hypervisors = hypervisors
        self._appears = appears
        self._vanishes = vanishes
        self._told = told
        # What is found at the start comes beside what is said meanwhile.
        self._order = threading.Lock()
        self._changed = threading.Condition()
        self._copied: dict[str, str] = {}
        self._status: dict[str, tuple[str, dict[str, Any]]] = {}
        self._true: dict[str, str] = {}
        self._open = ExitStack()

    def listen(self) -> None:
        """Take what plugins say."""
        said = keys.record(keys.ACTUAL, self._node_id, "*", "*", "*")
        self._open.callback(self._connector.subscribe(said, self._said, ordered=True).close)
        for sample in self._connector.get(said):
            self._said(sample)

    def serve(self) -> None:
        """Take what clients desire."""
        desired = paths.instance(paths.DESIRED, self._node_id, "*", "*")
        self._open.callback(self._connector.subscribe(desired, self._desired, ordered=True).close)

    def close(self) -> None:
        """Take no more."""
        self._open.close()

    # -- for those who answer ------------------------------------------------------------

    def status(self, instance: str) -> str:
        """Return the status that clients see; empty where there is none."""
        with self._changed:
            return self._status.get(instance, ("", {}))[0]

    def settle(self, path: str) -> None:
        """Wait until clients see what a plugin has put at *path* up to now."""
        kept = self._connector.kept(path)
        if kept is None:
            return
        with self._changed:
            self._changed.wait_for(
                lambda: stamp_order(self._copied.get(path, "")) >= stamp_order(kept.stamp),
                _SETTLE_S,
            )

    def until(self, instance: str, timeout_s: float) -> dict[str, Any]:
        """Wait until an instance has a record, and return it; NativertError TIMEOUT."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while instance not in self._status:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise NativertError(
                        f"{instance}: its plugin has not defined it within {timeout_s:.0f} s",
                        code=Code.TIMEOUT,
                    )
            return self._status[instance][1]

    def ask_plugin(self, plugin: str, fdu: str, instance: str, record: bytes) -> None:
        """Put a desired record where a plugin looks for it."""
        path = keys.record(keys.DESIRED, self._node_id, plugin, fdu, instance)
        self._connector.put(path, record)

    # -- from the plugins ----------------------------------------------------------------

    def _said(self, sample: Sample) -> None:
        with self._order:
            self._take(sample)

    def _take(self, sample: Sample) -> None:
        with self._changed:
            if stamp_order(sample.stamp) <= stamp_order(self._copied.get(sample.path, "")):
                return
        try:
            self._copy(sample)
        except (NativertError, msgspec.DecodeError, ValueError) as e:
            LOGGER.warning("%s: not published: %s", sample.path, e)
        with self._changed:
            if sample.value is None:
                self._copied.pop(sample.path, None)
            else:
                self._copied[sample.path] = sample.stamp
            self._changed.notify_all()

    def _copy(self, sample: Sample) -> None:
        key = keys.of_record(sample.path)
        record = None if sample.value is None else msgspec.json.decode(sample.value)
        if record is None or record.get("status") == "UNDEFINE":
            self._vanishes(key.instance)
            self._told(key, None)
            with self._changed:
                self._status.pop(key.instance, None)
                self._true.pop(key.instance, None)
            self._connector.delete(self._path(key))
            return
        assert sample.value is not None
        plugin = sample.path.split("/")[4]
        self._appears(key.fdu, key.instance, plugin)
        self._publish(key, record, sample.value)

    def _publish(self, key: keys.InstanceKey, record: dict[str, Any], value: bytes) -> None:
        self._told(key, record)
        self._connector.put(self._path(key), value)
        status = str(record.get("status"))
        with self._changed:
            self._status[key.instance] = (status, record)
            if status != "ERROR":
                self._true[key.instance] = status
            self._changed.notify_all()

    def _path(self, key: keys.InstanceKey) -> str:
        return paths.instance(paths.ACTUAL, self._node_id, key.fdu, key.instance)

    # -- from the clients ----------------------------------------------------------------

    def _desired(self, sample: Sample) -> None:
        if sample.value is None:
            return  # The request is forgotten; the instance is as it is.
        path = paths.of_instance(sample.path)
        key = keys.InstanceKey(path.fdu, path.instance)
        try:
            request, record = requests.decode(sample.value, sample.path)
            if request.status == "DEFINE":
                return  # fog05 defines by a function of the agent.
            self._go_on(key)
            plugin = self._hypervisors.plugin(str(record.get("hypervisor") or "BARE"))
            self.ask_plugin(plugin, key.fdu, key.instance, sample.value)
        except NativertError as e:
            LOGGER.warning("%s: %s", sample.path, e, extra={"instance": key.instance})
            self._refuse(key, e)

    def _go_on(self, key: keys.InstanceKey) -> None:
        with self._changed:
            status, record = self._status.get(key.instance, ("", {}))
            true = self._true.get(key.instance)
        if status == "ERROR" and true is not None:
            restored = record | {"status": true, "error_code": None, "error_msg": None}
            self._publish(key, restored, msgspec.json.encode(restored))

    def _refuse(self, key: keys.InstanceKey, e: NativertError) -> None:
        """Show why a request never came to a plugin, until the next one."""
        with self._changed:
            _, record = self._status.get(key.instance, ("", {}))
        if record:
            told = {"status": "ERROR", "error_code": e.code.fog05, "error_msg": str(e)}
            self._publish(key, record | told, msgspec.json.encode(record | told))
