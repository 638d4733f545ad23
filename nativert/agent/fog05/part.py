"""The fog05 agent's FDU part on one node: what clients of fog05 see of it, over Zenoh."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Final

import msgspec

from nativert.agent.config import Config, Zenoh
from nativert.agent.fog05 import access, functions, networks, node_info, paths, reaching
from nativert.agent.fog05.catalog import SharedCatalog
from nativert.agent.fog05.forwarding import Forwarding
from nativert.agent.fog05.functions import Functions
from nativert.agent.fog05.hypervisors import Hypervisors
from nativert.agent.fog05.networks import Networks
from nativert.agent.fog05.records import Records
from nativert.agent.logs import LOGGER
from nativert.agent.moves import Moves
from nativert.agent.nodes.half_open import HalfOpen
from nativert.agent.nodes.reaching import Nodes
from nativert.agent.overlay import place
from nativert.agent.overlay.joining import Joining
from nativert.errors import NativertError
from nativert.fdu.descriptor import ComputationRequirements
from nativert.plugin import agent_api, keys
from nativert.plugin.agent_api import AgentApi
from nativert.plugin.connector import Sample
from nativert.plugin.string_api import Reply, failure, methods, serve
from nativert.plugin.zenoh_connector import ZenohConnector
from nativert.plugin.zenoh_session import Settings, open_session
from nativert.runtime import admission
from nativert.runtime.context import Context
from nativert.runtime.local_os import LocalOs
from nativert.runtime.node import Node

# Whoever has just joined asks for this until somebody answers.
READY: Final = "/yaks_shim/ready"


def connect(config: Zenoh, node_id: str) -> ZenohConnector:
    """Join the network; NativertError NETWORK. Nothing may fork without exec after that."""
    settings = Settings(
        listen=config.listen,
        connect=config.connect,
        scouting=config.scouting,
        more={**access.options(config, node_id), **config.options},
    )
    local = (f"{keys.ACTUAL}/{node_id}/**", f"{keys.DESIRED}/{node_id}/**")
    spaces = (
        *local,
        paths.node(paths.ACTUAL, node_id, "**"),
        f"/nativert/{node_id}/**",
        READY,
        *paths.SHARED,
    )
    return ZenohConnector(open_session(settings), spaces=spaces, complete=paths.SHARED)


def join(node: Node, context: Context, config: Config) -> Fog05:
    """Return the node's part in the network that the configuration names."""
    assert config.zenoh is not None
    return Fog05(connect(config.zenoh, node.identity.id), node, context, config)


class Fog05:
    """Between `listen` and `serve` the plugins are started."""

    def __init__(
        self, connector: ZenohConnector, node: Node, context: Context, config: Config
    ) -> None:
        self.connector = connector
        # What is called when only a new session helps; an agent puts its own in place.
        self.start_anew: Callable[[], None] = lambda: None
        self._node = node
        self._context = context
        self._config = config
        self._id = node.identity.id
        self._directory = context.paths.lib
        addresses = config.zenoh.listen if config.zenoh else ()
        self.nodes = Nodes(context, connector, addresses)
        address = place.of(config)
        self.overlay = (
            None if address is None else Joining(context, connector, config.overlay, address)
        )
        self._hypervisors = Hypervisors(connector, self._id)
        self._catalog = SharedCatalog(connector, context.store, self._id)
        self._forwarding = Forwarding(connector, self._id, self._status, self._settle)
        self._networks = Networks(connector, self._id, node, context)
        self._records = Records(
            connector,
            self._id,
            self._hypervisors,
            self._forwarding.add,
            self._forwarding.remove,
            self._networks.told,
        )
        self._stopped = threading.Event()
        self._open = ExitStack()

    def _status(self, instance: str) -> str:
        return self._records.status(instance)

    def _settle(self, path: str) -> None:
        self._records.settle(path)

    def listen(self) -> None:
        """Hear plugins, answer what they ask, and share the catalog."""
        self._catalog.start()
        self._open.callback(self._catalog.close)
        self._records.listen()
        self._open.callback(self._forwarding.close)
        self._open.callback(self._records.close)
        told = node_info.configuration(self._id, self._config, self._directory)
        self._put(f"{keys.ACTUAL}/{self._id}/configuration", told)
        self._put(paths.node(paths.ACTUAL, self._id, "configuration"), told)
        asked = AgentApi(self.connector, self._node, self._id).call
        for name in agent_api.FUNCTIONS:
            self._answer(keys.agent_eval(self._id, name), partial(asked, name))
        manifests = keys.plugin(self._id, "*")
        self._open.callback(self.connector.subscribe(manifests, self._plugin, ordered=True).close)

    def serve(self) -> None:
        """Take requests, and say that the node is there."""
        own = Functions(
            self.connector,
            self._id,
            self._catalog,
            self._records,
            self._hypervisors,
            self._fits,
        )
        self._networks.start()
        self._open.callback(self._networks.close)
        for served, names in ((own, functions.FUNCTIONS), (self._networks, networks.FUNCTIONS)):
            call = serve(methods(served, names))
            for name in names:
                self._answer(paths.function(self._id, name), partial(call, name))
        for name, (code, reason) in functions.WITHOUT.items():
            refusal = failure(NativertError(f"{name}: {reason}", code=code))
            self._answer(paths.function(self._id, name), partial(_refused, refusal))
        self._records.serve()
        name = self._context.name
        self._put(
            paths.node(paths.ACTUAL, self._id, "info"),
            node_info.info(self._id, name, self._directory),
        )
        self._tell_status()
        threading.Thread(target=self._watch, name="node status", daemon=True).start()
        zenoh = self._config.zenoh
        assert zenoh is not None
        others = (zenoh.connect, access.credentials(zenoh), self._stopped)
        threading.Thread(target=reaching.tell, args=others, name="others", daemon=True).start()
        if self.overlay is not None:
            self.overlay.start()
            self._open.callback(self.overlay.close)
        # Before it is seen: who sees it asks it who it is.
        self.nodes.start()
        self._open.callback(self.nodes.close)
        half_open = HalfOpen(self.connector, self.start_anew)
        half_open.start()
        self._open.callback(half_open.close)
        self._open.callback(self.connector.liveliness(paths.alive(self._id)).close)
        arriving = (lambda: None) if self.overlay is None else self.overlay.wake
        moves = Moves(self._node, self.connector, self.nodes, arriving)
        self._open.callback(moves.close)
        self._answer(READY, lambda _: {"result": self._id})
        LOGGER.info("node %s is on the network as %s", name, self._id)

    def refuse(self) -> None:
        """Say that the node is gone, and take no more; the plugins are stopped after that."""
        self._stopped.set()
        self._open.close()

    def leave(self) -> None:
        """Be on the network no longer."""
        self.connector.close()

    def _answer(self, path: str, answer: Callable[[Mapping[str, str]], Reply]) -> None:
        self._open.callback(self.connector.eval(path, answer).close)

    def _put(self, path: str, value: object) -> None:
        self.connector.put(path, msgspec.json.encode(value))

    def _plugin(self, sample: Sample) -> None:
        path = paths.node(paths.ACTUAL, self._id, f"plugins/{sample.path.split('/')[4]}/info")
        if sample.value is None:
            self.connector.delete(path)
        else:
            self.connector.put(path, sample.value)

    def _fits(self, requirements: ComputationRequirements) -> None:
        admission.check_machine(requirements)
        admission.check_free(requirements, LocalOs(), self._directory)

    def _tell_status(self) -> None:
        self._put(
            paths.node(paths.ACTUAL, self._id, "status"),
            node_info.status(self._id, self._directory),
        )

    def _watch(self) -> None:
        assert self._config.zenoh is not None
        while not self._stopped.wait(self._config.zenoh.status_interval_s):
            try:
                self._tell_status()
            except (NativertError, OSError) as e:
                LOGGER.warning("cannot tell the node's status: %s", e)


def _refused(refusal: Reply, _: Mapping[str, str]) -> Reply:
    return refusal
