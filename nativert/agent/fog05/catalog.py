"""Descriptors, images, flavors and networks: all nodes have all of them, the newer one counts.

What a client asks for (tree dgfos) is taken over as it is (tree agfos). A node that was away
asks each other one for everything when they see each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from nativert.agent.fog05 import paths
from nativert.agent.logs import LOGGER
from nativert.errors import Code, NativertError
from nativert.plugin.connector import Sample
from nativert.plugin.string_api import Reply, result_of
from nativert.plugin.zenoh_connector import ZenohConnector
from nativert.store.catalog import Entry
from nativert.store.durable import Store

_MAX_BYTES: Final = 4 << 20
_ASK_S: Final = 10.0


class SharedCatalog:
    """One node's copy: in its store, and served by its connector."""

    def __init__(self, connector: ZenohConnector, store: Store, node_id: str) -> None:
        self._connector = connector
        self._store = store
        self._node_id = node_id
        self._open = ExitStack()

    def start(self) -> None:
        """Serve what the store has, and take what others have."""
        for entry in self._store.entries():
            self._connector.keep(_sample(entry))
        for selector in paths.SHARED:
            self._open.callback(self._connector.subscribe(selector, self._told, ordered=True).close)
        own = paths.catalog_of(self._node_id)
        self._open.callback(self._connector.eval(own, self._all).close)
        watching = self._connector.watch(paths.alive("*"), self._seen)
        self._open.callback(watching.close)

    def close(self) -> None:
        """Take and tell no more."""
        self._open.close()

    def descriptor(self, fdu: str) -> dict[str, Any]:
        """Return a descriptor; NativertError NOT_FOUND."""
        kept = self._connector.kept(paths.descriptor(fdu))
        if kept is None or kept.value is None:
            raise NativertError(f"FDU {fdu} is not in the catalog", code=Code.NOT_FOUND)
        found: dict[str, Any] = msgspec.json.decode(kept.value)
        return found

    def put(self, path: str, value: bytes) -> None:
        """Put a value for all nodes; it is on disk here when this returns."""
        if len(value) > _MAX_BYTES:
            raise NativertError(f"{path}: {len(value)} bytes are too many", code=Code.DESCRIPTOR)
        self._connector.put(path, value)
        kept = self._connector.kept(path)
        if kept is not None:
            self._store.enter(_entry(kept))

    def _told(self, sample: Sample) -> None:
        if sample.value is not None and not _is_object(sample):
            LOGGER.warning("%s: not taken over: it is not a JSON object", sample.path)
            return
        if _asks_removal(sample):
            sample = Sample(sample.path, None, sample.stamp)
        self._take(sample)
        if sample.path.startswith(paths.DESIRED):
            self._take(Sample(paths.ACTUAL + sample.path[len(paths.DESIRED):], sample.value,
                              sample.stamp))  # fmt: skip

    def _take(self, sample: Sample) -> None:
        if self._connector.keep(sample):
            try:
                self._store.enter(_entry(sample))
            except NativertError as e:
                LOGGER.error("%s: cannot be written to the store: %s", sample.path, e)

    def _all(self, _: Mapping[str, str]) -> Reply:
        return {"result": [list(entry) for entry in self._store.entries()]}

    def _seen(self, path: str, here: bool) -> None:
        node = path.rpartition("/")[2]
        if not here or node == self._node_id:
            return
        try:
            reply = self._connector.ask(paths.catalog_of(node), {}, timeout_s=_ASK_S)
            entries = msgspec.convert(result_of(reply, node), list[Entry])
        except (NativertError, OSError, msgspec.ValidationError) as e:
            LOGGER.warning("node %s: cannot read its catalog: %s", node, e)
            return
        for entry in entries:
            self._told(_sample(entry))


def _asks_removal(sample: Sample) -> bool:
    # The client takes a connection point away by putting it once more, with this status.
    if sample.value is None or not sample.path.startswith(f"{paths.DESIRED}/networks/ports/"):
        return False
    return bool(msgspec.json.decode(sample.value).get("status") == "remove")


def _is_object(sample: Sample) -> bool:
    try:
        return isinstance(msgspec.json.decode(sample.value or b""), dict)
    except msgspec.DecodeError:
        return False


def _sample(entry: Entry) -> Sample:
    value = None if entry.value is None else entry.value.encode()
    return Sample(entry.path, value, entry.stamp)


def _entry(sample: Sample) -> Entry:
    value = None if sample.value is None else sample.value.decode()
    return Entry(sample.path, sample.stamp, value)
