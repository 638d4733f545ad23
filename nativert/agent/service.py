"""The agent's life: lock, node, instances found again, API, and the end that leaves them alone."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

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
from nativert.errors import Code, NativertError
from nativert.runtime.context import Context
from nativert.runtime.node import Node
from nativert.runtime.views import Instance
from nativert.store.locks import NodeLock, holder
from nativert.store.paths import Paths

# What is under way when the agent is told to end may take this long to come to an end.
_SETTLING_S = 5.0


def serve(
    root: Path | None, *, here: bool = False, config: Path | None = None, stop_all: bool = False
) -> None:
    """Serve the node until SIGTERM or SIGINT; NativertError if another agent does."""
    if os.geteuid() != 0:
        raise NativertError(
            "the agent needs root", code=Code.PERMISSION, hint="run it as root or with sudo"
        )
    began = time.monotonic()
    paths = Paths(root)
    source = config or paths.config
    accepted = configuration.read(source, needed=config is not None)
    paths.create()
    with ExitStack() as held:
        lock = NodeLock(paths, "agent")
        if not lock.try_acquire():
            pid = holder(lock.path)
            by = f"process {pid}" if pid else "another process"
            raise NativertError(
                f"agent: {by} serves this node already",
                hint="stop it first, or choose another node with --root",
            )
        held.callback(lock.release)
        logs.configure(accepted.log_level)
        context = Context(root, here=here)
        reporter = FanOut(LogReporter())
        node = held.enter_context(Node(context=context, reporter=reporter))
        directory = Path(accepted.plugins.directory or paths.etc / "plugins")
        plugins = Plugins(node, reporter, directory)
        held.callback(plugins.close)
        agent = _Agent(node, context, plugins, source, accepted, stop_all=stop_all)
        asyncio.run(agent.run(began))


class _Agent:
    def __init__(
        self,
        node: Node,
        context: Context,
        plugins: Plugins,
        source: Path,
        config: Config,
        *,
        stop_all: bool,
    ) -> None:
        self._node = node
        self._plugins = plugins
        self._context = context
        self._source = source
        self._config = config
        self._stop_all = stop_all or config.stop_all
        self._asked_stop_all = stop_all
        self._sampler = Sampler(node, config.monitor.interval_s)

    async def run(self, began: float) -> None:
        """Serve until a signal ends it."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        core = Core(self._node, self._context, self._config, self._sampler)
        server = Server(core)
        await core.ask(self._find_again)
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
        watchdog = asyncio.ensure_future(_watchdog(core))
        try:
            await ended.wait()
        finally:
            watchdog.cancel()
            await self._end(core, server)

    def _find_again(self) -> None:
        """Look at every instance: what ended meanwhile is noted with its reason."""
        rows = self._node.list()
        for row in rows:
            fields = {"instance": row.instance, "fdu": row.fdu, "status": row.state}
            LOGGER.info("found %s, pid %s", row.name, row.pid, extra=fields)

    async def _end(self, core: Core, server: Server) -> None:
        notify("STOPPING=1")
        core.ending.set()
        await server.stop()
        if not await core.settled(_SETTLING_S):
            LOGGER.warning("operations are under way; what stands half-way is settled later")
        await core.ask(self._sampler.close)
        if self._stop_all:
            rows = [row for row in self._node.list() if row.state in ("RUNNING", "PAUSED")]
            await asyncio.gather(*(core.slow.call(partial(self._stop, row)) for row in rows))
            LOGGER.info("ended, and the instances with it")
        else:
            LOGGER.info("ended; the instances go on")

    def _stop(self, row: Instance) -> None:
        try:
            if row.state == "PAUSED":
                # Its application shall be asked, and can't hear while it is frozen.
                self._node.resume(row.instance)
            self._node.stop(row.instance)
        except (NativertError, OSError) as e:
            LOGGER.error("cannot stop %s: %s", row.name, e, extra={"instance": row.instance})

    def _reload(self) -> None:
        """Read the configuration again: log level, interval and stop_all take effect."""
        try:
            fresh = configuration.read(self._source, needed=False)
        except NativertError as e:
            LOGGER.error("not reloaded: %s", e)
            return
        if (fresh.api, fresh.plugins) != (self._config.api, self._config.plugins):
            LOGGER.warning("changes of api and plugins take effect with the next start")
        logs.configure(fresh.log_level)
        self._sampler.interval_s = fresh.monitor.interval_s
        self._stop_all = self._asked_stop_all or fresh.stop_all
        LOGGER.info("configuration reloaded from %s", self._source)


async def _watchdog(core: Core) -> None:
    """Tell the service manager, as often as it wants, that loop, threads and store answer."""
    period_s = watchdog_period_s()
    while period_s is not None:
        await core.ask(lambda: core.context.store.events(0, limit=1))
        notify("WATCHDOG=1")
        await asyncio.sleep(period_s)
