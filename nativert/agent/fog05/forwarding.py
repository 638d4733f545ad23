"""The questions of clients to instances: start, run, log, ls, get; the plugin answers them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final

from nativert.agent.fog05 import paths
from nativert.errors import Code, NativertError
from nativert.plugin import keys
from nativert.plugin.connector import Answer, Closing
from nativert.plugin.string_api import Reply, failure
from nativert.plugin.zenoh_connector import ZenohConnector

# An application may run for long before `run` answers.
_LONGEST_S: Final = 30 * 86400.0
_SHORT_S: Final = 3700.0


class Forwarding:
    """The evals of the node's instances; `settle` waits until clients see a plugin's record."""

    def __init__(
        self,
        connector: ZenohConnector,
        node_id: str,
        status: Callable[[str], str],
        settle: Callable[[str], None],
    ) -> None:
        self._connector = connector
        self._node_id = node_id
        self._status = status
        self._settle = settle
        self._mutex = threading.Lock()
        self._registered: dict[str, list[Closing]] = {}

    def add(self, fdu: str, instance: str, plugin: str) -> None:
        """Answer for an instance; safe twice."""
        with self._mutex:
            if instance not in self._registered:
                self._registered[instance] = [
                    self._connector.eval(
                        paths.instance(paths.ACTUAL, self._node_id, fdu, instance, name),
                        self._answer(fdu, instance, plugin, name),
                    )
                    for name in keys.EVALS
                ]

    def remove(self, instance: str) -> None:
        """Answer for it no longer; safe when absent."""
        with self._mutex:
            for one in self._registered.pop(instance, []):
                one.close()

    def close(self) -> None:
        """Answer for none."""
        for instance in list(self._registered):
            self.remove(instance)

    def _answer(self, fdu: str, instance: str, plugin: str, name: str) -> Answer:
        asked = keys.instance_eval(self._node_id, plugin, fdu, instance, name)
        record = keys.record(keys.ACTUAL, self._node_id, plugin, fdu, instance)
        timeout_s = _LONGEST_S if name == "run" else _SHORT_S

        def answer(parameters: Mapping[str, str]) -> Reply:
            try:
                reply = self._connector.ask(asked, parameters, timeout_s=timeout_s)
            except NativertError as e:
                if e.code is not Code.NOT_FOUND:
                    return failure(e)
                status = self._status(instance) or "unknown"
                text = f"{instance}: cannot {name} in {status}"
                return failure(NativertError(text, code=Code.TRANSITION))
            self._settle(record)
            return reply

        return answer
