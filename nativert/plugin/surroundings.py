"""What a plugin is given of the node that it works on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from nativert.plugin import keys
from nativert.plugin.agent_api import AgentApi
from nativert.plugin.connector import Connector
from nativert.plugin.nm_api import NodeNetworkApi
from nativert.plugin.os_api import LocalOsApi
from nativert.plugin.reports import Listeners
from nativert.plugin.string_api import Call, Reply
from nativert.runtime.local_os import LocalOs
from nativert.runtime.named_networks import NamedNetworks
from nativert.runtime.network import BridgeNetwork
from nativert.runtime.node import Node

_ASK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Surroundings:
    """The objects through which a plugin reaches a node.

    `node` was made with `reports`, so that the plugin hears of what others do with it. `needs`
    are the types of plugins (os, network) that must be there before it starts.
    """

    node_id: str
    node: Node
    connector: Connector
    os: Call
    nm: Call
    agent: Call
    reports: Listeners
    needs: tuple[str, ...] = ()
    _closing: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Release what was made for it; node and connector stay."""
        self._closing.close()


def of_node(node: Node, reports: Listeners, connector: Connector) -> Surroundings:
    """Return the surroundings in which the node's own files and network are served."""
    closing = ExitStack()
    network = _OwnNetwork(node, closing)
    node_id = node.identity.id
    return Surroundings(
        node_id=node_id,
        node=node,
        connector=connector,
        os=LocalOsApi(LocalOs()).call,
        nm=network.call,
        agent=AgentApi(connector, node, node_id).call,
        reports=reports,
        _closing=closing,
    )


def evals(connector: Connector, path_of: str) -> Call:
    """Return the caller of functions that others serve; *path_of* ends where their names go."""

    def call(name: str, parameters: Mapping[str, str]) -> Reply:
        return connector.ask(path_of + name, parameters, timeout_s=_ASK_TIMEOUT_S)

    return call


def os_plugin(connector: Connector, node_id: str) -> Call:
    """Return the caller of the OS plugin's functions."""
    return evals(connector, keys.os_eval(node_id, ""))


def network_plugin(connector: Connector, node_id: str, uuid: str) -> Call:
    """Return the caller of a network plugin's functions."""
    return evals(connector, keys.network_eval(node_id, uuid, ""))


class _OwnNetwork:
    """The network functions of the node, made when the first of them is called."""

    def __init__(self, node: Node, closing: ExitStack) -> None:
        self._node = node
        self._closing = closing
        self._mutex = threading.Lock()
        self._call: Call | None = None

    def call(self, name: str, parameters: Mapping[str, str]) -> Reply:
        with self._mutex:
            if self._call is None:
                self._call = self._open()
        return self._call(name, parameters)

    def _open(self) -> Call:
        identity, paths = self._node.identity, self._node.paths
        network = BridgeNetwork(identity.tag, str(identity.subnet), paths.run / "net")
        self._closing.callback(network.close)
        networks = NamedNetworks(identity.tag, network, str(identity.subnet))
        self._closing.callback(networks.close)
        return NodeNetworkApi(networks).call
