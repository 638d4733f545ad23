"""The runtime plugins that work on this node: loaded, started, and stopped in the other order.

One that is broken is told in the log and stops nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from nativert.agent.logs import LOGGER
from nativert.errors import NativertError
from nativert.plugin.connector import Connector
from nativert.plugin.embedded import EmbeddedConnector
from nativert.plugin.loading import Plugin, load
from nativert.plugin.reports import Listeners
from nativert.plugin.surroundings import of_node
from nativert.runtime.node import Node


class Network(Protocol):
    """What joins this node's plugins with others."""

    @property
    def connector(self) -> Connector:
        """What the plugins speak through."""
        ...

    def listen(self) -> None:
        """Hear the plugins."""
        ...

    def serve(self) -> None:
        """Take requests for them."""
        ...

    def refuse(self) -> None:
        """Take requests no longer."""
        ...

    def leave(self) -> None:
        """Be heard by nobody any more."""
        ...


class Plugins:
    """What is installed, and what the manifests in *directory* name."""

    def __init__(
        self, node: Node, reports: Listeners, directory: Path, network: Network | None = None
    ) -> None:
        self._directory = directory
        self._network = network
        connector = network.connector if network else EmbeddedConnector()
        self._surroundings = of_node(node, reports, connector)
        self._running: list[tuple[str, Plugin]] = []

    def start(self) -> None:
        """Load and start each of them."""
        if self._network:
            self._network.listen()
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
        if self._network:
            self._network.serve()

    def close(self) -> None:
        """Stop all of them; instances go on."""
        if self._network:
            self._network.refuse()
        while self._running:
            name, plugin = self._running.pop()
            try:
                plugin.stop_runtime()
            except (NativertError, OSError) as e:
                LOGGER.error("not stopped: %s", e, extra={"plugin": name})
        self._surroundings.close()
        if self._network:
            self._network.leave()
