"""The runtime plugins that work on this node: loaded, started, and stopped in the other order.

One that is broken is told in the log and stops nothing else.
"""

from __future__ import annotations

from pathlib import Path

from nativert.agent.logs import LOGGER
from nativert.errors import NativertError
from nativert.plugin.embedded import EmbeddedConnector
from nativert.plugin.loading import Plugin, load
from nativert.plugin.reports import Listeners
from nativert.plugin.surroundings import of_node
from nativert.runtime.node import Node


class Plugins:
    """What is installed, and what the manifests in *directory* name."""

    def __init__(self, node: Node, reports: Listeners, directory: Path) -> None:
        self._directory = directory
        self._surroundings = of_node(node, reports, EmbeddedConnector())
        self._running: list[tuple[str, Plugin]] = []

    def start(self) -> None:
        """Load and start each of them."""
        for found in load(self._directory, self._surroundings):
            fields = {"plugin": found.name}
            if found.plugin is None:
                LOGGER.error("%s: %s", found.source, found.error, extra=fields)
                continue
            try:
                found.plugin.start_runtime()
            except (NativertError, OSError) as e:
                LOGGER.error("not started: %s", e, extra=fields)
                continue
            self._running.append((found.name, found.plugin))
            LOGGER.info("plugin of %s runs", found.source, extra=fields)

    def close(self) -> None:
        """Stop all of them; instances go on."""
        while self._running:
            name, plugin = self._running.pop()
            try:
                plugin.stop_runtime()
            except (NativertError, OSError) as e:
                LOGGER.error("not stopped: %s", e, extra={"plugin": name})
        self._surroundings.close()
