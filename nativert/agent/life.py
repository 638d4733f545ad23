"""What the agent does while it holds the lock: finds the instances again, serves, and ends."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from nativert import __version__
from nativert.agent import config as configuration
from nativert.agent import logs
from nativert.agent.api.core import Core
from nativert.agent.api.server import Server
from nativert.agent.config import Config
from nativert.agent.logs import LOGGER
from nativert.agent.monitor import Sampler
from nativert.agent.notify import notify, watchdog_period_s
from nativert.agent.plugins import Plugins
from nativert.agent.reporting import FanOut, LogReporter
from nativert.errors import NativertError
from nativert.plugin import zenoh_package
from nativert.runtime.context import Context
from nativert.runtime.node import Node
from nativert.runtime.pool import Pool
from nativert.runtime.supervision.supervisor import Supervisor

if TYPE_CHECKING:
    from nativert.agent.nodes.reaching import Nodes

# What is under way when the agent is told to end may take this long to come to an end.
_SETTLING_S = 5.0


def run(
    root: Path | None,
    *,
    here: bool,
    source: Path,
    accepted: Config,
    stop_all: bool,
    insecure: bool,
    began: float,
) -> bool:
    """Serve until SIGTERM or SIGINT; *began* is when the process did, for the log.

    Returns whether the agent is to start anew.
    """
    with ExitStack() as held:
        logs.configure(accepted.log_level)
        context = Context(root, here=here)
        reporter = FanOut(LogReporter())
        node = held.enter_context(Node(context=context, reporter=reporter))
        directory = Path(accepted.plugins.directory or context.paths.etc / "plugins")
        network = None
        if accepted.zenoh is not None:
            zenoh_package.require()
            from nativert.agent.fog05.part import join

            network = join(node, context, accepted)
        plugins = Plugins(node, reporter, directory, network)
        held.callback(plugins.close)
        agent = Agent(
            node,
            context,
            plugins,
            reporter,
            source,
            accepted,
            stop_all=stop_all,
            insecure=insecure,
        )
        if network is not None:
            agent.nodes = network.nodes
            network.start_anew = agent.start_anew
            if network.overlay is not None:
                reporter.add(network.overlay)
                # Before anything is configured: in an overlay interfaces are other ones.
                network.overlay.make()
        return asyncio.run(agent.run(began))


class Agent:
    """One agent, from the lock to the end."""

    def __init__(
        self,
        node: Node,
        context: Context,
        plugins: Plugins,
        reporter: FanOut,
        source: Path,
        config: Config,
        *,
        stop_all: bool,
        insecure: bool,
    ) -> None:
        self._node = node
        self._plugins = plugins
        self._context = context
        self._source = source
        self._insecure = insecure
        self._config = config
        self._stop_all = stop_all or config.stop_all
        self._asked_stop_all = stop_all
        self.nodes: Nodes | None = None
        self._sampler = Sampler(node, context, config.monitor.interval_s)
        self._supervisor = Supervisor(node, reconcile_s=config.supervision.reconcile_s)
        reporter.add(self._supervisor)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._anew = False

    def start_anew(self) -> None:
        """End what `run` does, to be started again; of any thread, while it runs."""
        assert self._loop is not None
        self._anew = True
        self._loop.call_soon_threadsafe(self._ended.set)

    def _told_to_end(self) -> None:
        self._anew = False
        self._ended.set()

    async def run(self, began: float) -> bool:
        """Serve until a signal ends it, or `start_anew`: then True."""
        self._loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        core = Core(self._node, self._context, self._config, self._sampler, self.nodes)
        server = Server(core)
        await core.ask(self._find_again)
        await core.ask(self._supervisor.start)
        await core.ask(self._sampler.start)
        await core.ask(self._plugins.start)
        await server.start()
        took_ms = (time.monotonic() - began) * 1000
        LOGGER.info(
            "nativert %s serves node %s on %s after %.0f ms",
            __version__,
            self._context.name,
            self._context.paths.api_socket,
            took_ms,
        )
        # What is there now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        notify("READY=1", f"STATUS=serving {self._context.name}")
        watchdog = asyncio.ensure_future(self._watchdog(core))
        try:
            await self._ended.wait()
        finally:
            watchdog.cancel()
            await self._end(core, server)
        return self._anew

    def _find_again(self) -> None:
        """Look at every instance: what ended meanwhile is noted with its reason."""
        rows = self._node.list()
        for row in rows:
            fields = {"instance": row.instance, "fdu": row.fdu, "status": row.state}
            LOGGER.info("found %s, pid %s", row.name, row.pid, extra=fields)

    async def _end(self, core: Core, server: Server) -> None:
        if not self._anew:
            notify("STOPPING=1")
        core.ending.set()
        await server.stop()
        if not await core.settled(_SETTLING_S):
            LOGGER.warning("operations are under way; what stands half-way is settled later")
        await core.ask(self._sampler.close)
        if self._stop_all and not self._anew:
            try:
                await core.ask(self._supervisor.stop_all)
            except ExceptionGroup as group:
                for error in group.exceptions:
                    LOGGER.error("%s", error)
            LOGGER.info("ended, and the instances with it")
        else:
            await core.ask(self._supervisor.close)
            LOGGER.info("ended; the instances go on")

    def _reload(self) -> None:
        """Read the configuration again: log level, monitor, supervision, stop_all take effect."""
        try:
            fresh = configuration.read(self._source, needed=False, insecure=self._insecure)
        except NativertError as e:
            LOGGER.error("not reloaded: %s", e)
            return
        old = self._config
        before = (old.api, old.plugins, old.zenoh, old.overlay)
        if (fresh.api, fresh.plugins, fresh.zenoh, fresh.overlay) != before:
            LOGGER.warning(
                "changes of api, plugins, zenoh and overlay take effect with the next start"
            )
        logs.configure(fresh.log_level)
        self._sampler.interval_s = fresh.monitor.interval_s
        self._supervisor.reconcile_s = fresh.supervision.reconcile_s
        self._stop_all = self._asked_stop_all or fresh.stop_all
        LOGGER.info("configuration reloaded from %s", self._source)

    async def _watchdog(self, core: Core) -> None:
        """Tell the service manager, as often as it wants, that loop, store and supervisor live."""
        period_s = watchdog_period_s()
        # Of its own: starts that wait for what they depend on may have all others.
        thread = Pool("watchdog", 1)
        while period_s is not None:
            try:
                await thread.call(lambda: core.context.store.events(0, limit=1))
                if self._supervisor.alive():
                    notify("WATCHDOG=1")
            except NativertError as e:
                # A disk that does not answer once is no reason to end; one that stays so is.
                LOGGER.error("watchdog: %s", e)
            await asyncio.sleep(period_s)
