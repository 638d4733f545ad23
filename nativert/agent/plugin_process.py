"""The native plugin as a process of its own, at an agent of fog05 that it reaches over Zenoh."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from nativert.agent import logs
from nativert.agent.logs import LOGGER
from nativert.agent.reporting import FanOut, LogReporter
from nativert.errors import Code, DescriptorError, NativertError
from nativert.plugin import keys, manifest, zenoh_credentials, zenoh_package
from nativert.plugin.connector import Connector
from nativert.plugin.manifest import Manifest
from nativert.plugin.runtime_plugin import NativePlugin
from nativert.plugin.surroundings import Surroundings, evals, of_node
from nativert.plugin.zenoh_credentials import Credentials
from nativert.plugin.zenoh_refusal import refusal
from nativert.runtime.context import Context
from nativert.runtime.node import Node
from nativert.runtime.supervision.supervisor import Supervisor
from nativert.store.locks import NodeLock, holder
from nativert.store.paths import Paths

_AGENT_S: Final = 60.0


def serve(root: Path | None, source: Path, *, here: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; instances go on.

    NativertError: DESCRIPTOR for a wrong manifest, TIMEOUT without an agent, NETWORK.
    """
    if os.geteuid() != 0:
        raise NativertError(
            "the plugin needs root", code=Code.PERMISSION, hint="run it as root or with sudo"
        )
    zenoh_package.require()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    given, node_id, locator, credentials = _read(source)
    with ExitStack() as held:
        _lock(root, held)
        logs.configure("info")
        context = Context(root, here=here)
        reporter = FanOut(LogReporter())
        node = held.enter_context(Node(context=context, reporter=reporter))
        supervisor = Supervisor(node)
        reporter.add(supervisor)
        # Nothing forks from here on: the launcher and its like are executed.
        from nativert.plugin.zenoh_connector import ZenohConnector
        from nativert.plugin.zenoh_session import Settings, open_session

        own = (
            keys.plugin(node_id, given.uuid),
            f"{keys.ACTUAL}/{node_id}/runtimes/{given.uuid}/**",
        )
        settings = Settings(connect=(locator,), credentials=credentials)
        connector = ZenohConnector(open_session(settings), spaces=own)
        held.callback(connector.close)
        _wait(connector, node_id, locator, credentials, ended)
        around = of_node(node, reporter, connector)
        held.callback(around.close)
        plugin = _plugin(given, node_id, around)
        supervisor.start()
        held.callback(supervisor.close)
        plugin.start_runtime()
        held.callback(plugin.stop_runtime)
        LOGGER.info("plugin %s of node %s serves the agent at %s", given.uuid, node_id, locator)
        ended.wait()
    LOGGER.info("ended; the instances go on")


def _read(source: Path) -> tuple[Manifest, str, str, Credentials | None]:
    """Return the manifest, the node's id, the agent's endpoint and what is shown there."""
    try:
        with source.open("rb") as file:
            given = manifest.decode(file.read(manifest.MAX_BYTES + 1), source=str(source))
    except OSError as e:
        raise NativertError(f"{source}: {e.strerror}", code=Code.USAGE) from None
    configuration = manifest.native_configuration(given)
    for name in ("nodeid", "ylocator"):
        if not getattr(configuration, name):
            raise DescriptorError(f"configuration.{name}", "is required", hint=f"in {source}")
    if given.name.lower() != "native" or given.type != "runtime":
        raise DescriptorError("name", f"is {given.name!r}: an agent gives FDUs to `native` only")
    locator, shown = configuration.ylocator, configuration.credentials
    credentials = zenoh_credentials.read(source.parent / shown) if shown else None
    if "/" not in locator:
        locator = f"{'tls' if credentials else 'tcp'}/{locator}"
    return given, configuration.nodeid, locator, credentials


def _lock(root: Path | None, held: ExitStack) -> None:
    paths = Paths(root)
    paths.create()
    lock = NodeLock(paths, "agent")
    if not lock.try_acquire():
        raise NativertError(
            f"plugin: process {holder(lock.path) or '?'} serves this node already",
            hint="stop it first, or choose another node with --root",
        )
    held.callback(lock.release)


def _wait(
    connector: Connector,
    node_id: str,
    locator: str,
    credentials: Credentials | None,
    ended: threading.Event,
) -> None:
    """Wait for the agent's configuration: what is put before it listens would be lost."""
    deadline = time.monotonic() + _AGENT_S
    while not connector.get(f"{keys.ACTUAL}/{node_id}/configuration"):
        if ended.wait(0.1) or time.monotonic() > deadline:
            why = refusal(locator, credentials)
            raise NativertError(
                f"no agent of node {node_id} at {locator} within {_AGENT_S:.0f} s",
                code=Code.TIMEOUT,
                hint=f"{why}; look at nodeid, ylocator and credentials in the manifest",
            )


def _plugin(given: Manifest, node_id: str, around: Surroundings) -> NativePlugin:
    connector = around.connector
    asked = evals(connector, keys.agent_eval(node_id, ""))
    there = dataclasses.replace(around, node_id=node_id, agent=asked)
    return NativePlugin(given.name, given.version, given.uuid, given, surroundings=there)
