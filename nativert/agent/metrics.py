"""Figures in Prometheus' text format: of the instances, of the agent, of the node."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from nativert import __version__
from nativert.agent.api.core import Core
from nativert.runtime.views import Figures

_LABELS = ("instance", "name", "fdu")
_STATES = ("DEFINED", "CONFIGURED", "RUNNING", "PAUSED", "SCALING", "MIGRATING", "TAKE_OFF",
           "LANDING")  # fmt: skip
# Name without prefix and _total, help, whether it only grows, and the value of one instance.
_FIGURES: tuple[tuple[str, str, bool, Callable[[Figures], float | None]], ...] = (
    ("cpu_seconds", "CPU time used.", True, lambda f: _seconds(f.cpu_ns)),
    ("cpu_throttled_seconds", "Time held back by the limit.", True,
     lambda f: _seconds(f.throttled_ns)),
    ("memory_bytes", "Memory in use, without what is easily reclaimed.", False,
     lambda f: f.memory_bytes),
    ("memory_limit_bytes", "Memory limit.", False, lambda f: f.memory_max),
    ("memory_peak_bytes", "Most memory ever in use.", False, lambda f: f.peak_bytes),
    ("memory_anon_bytes", "Anonymous memory.", False, lambda f: f.anon_bytes),
    ("memory_file_bytes", "Page cache.", False, lambda f: f.file_bytes),
    ("swap_bytes", "Swap in use.", False, lambda f: f.swap_bytes),
    ("pids", "Processes and threads.", False, lambda f: f.pids),
    ("pids_limit", "Limit of processes and threads.", False, lambda f: f.pids_max),
    ("io_read_bytes", "Bytes read from devices.", True, lambda f: f.io_read_bytes),
    ("io_written_bytes", "Bytes written to devices.", True, lambda f: f.io_write_bytes),
    ("network_receive_bytes", "Bytes received.", True, lambda f: f.net_rx_bytes),
    ("network_transmit_bytes", "Bytes sent.", True, lambda f: f.net_tx_bytes),
    ("oom_kills", "Processes killed for memory.", True, lambda f: f.oom_kills),
    ("cpu_pressure_ratio", "Share of the last 10 s in which a task waited for a CPU.", False,
     lambda f: f.cpu_pressure),
    ("memory_pressure_ratio", "Share of the last 10 s in which a task waited for memory.", False,
     lambda f: f.memory_pressure),
    ("io_pressure_ratio", "Share of the last 10 s in which a task waited for a device.", False,
     lambda f: f.io_pressure),
)  # fmt: skip


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


class _Node(Collector):
    def __init__(self, core: Core) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        """Yield every family; asked once for each answer."""
        yield from self._instances()
        yield from self._agent()

    def _instances(self) -> Iterator[Metric]:
        rows = self._core.sampler.rows()
        states = GaugeMetricFamily("nativert_instances", "Instances by state.", labels=["state"])
        for state in _STATES:
            states.add_metric([state], sum(row.state == state for row in rows))
        yield states
        uptime = GaugeMetricFamily(
            "nativert_instance_uptime_seconds", "Time since the start.", labels=_LABELS
        )
        restarts = CounterMetricFamily(
            "nativert_instance_restarts", "Starts by the restart policy.", labels=_LABELS
        )
        for row in rows:
            labels = [row.instance, row.name, row.fdu]
            restarts.add_metric(labels, row.restarts)
            if row.uptime_s is not None:
                uptime.add_metric(labels, row.uptime_s)
        yield uptime
        yield restarts
        fdus = {row.instance: row.fdu for row in rows}
        figures = [f for f in self._core.sampler.figures() if f.instance in fdus]
        for name, text, grows, value_of in _FIGURES:
            kind = CounterMetricFamily if grows else GaugeMetricFamily
            family = kind(f"nativert_instance_{name}", text, labels=_LABELS)
            for figure in figures:
                value = value_of(figure)
                if value is not None:
                    family.add_metric([figure.instance, figure.name, fdus[figure.instance]], value)
            yield family

    def _agent(self) -> Iterator[Metric]:
        core = self._core
        build = GaugeMetricFamily(
            "nativert_agent_build_info", "The agent's version.", labels=["version", "node"]
        )
        build.add_metric([__version__, core.context.name], 1)
        yield build
        requests = CounterMetricFamily(
            "nativert_agent_requests", "Requests answered.", labels=["route", "status"]
        )
        for (route, status), number in sorted(core.answered.copy().items()):
            requests.add_metric([route, str(status)], number)
        yield requests
        used = resource.getrusage(resource.RUSAGE_SELF)
        yield CounterMetricFamily(
            "nativert_agent_cpu_seconds", "CPU time of the agent.", used.ru_utime + used.ru_stime
        )
        for name, text, value in (
            ("requests_in_flight", "Requests being served.", core.requests),
            ("streams", "Streams that are open.", core.streams),
            ("threads", "Threads of the agent.", threading.active_count()),
            ("uptime_seconds", "Time since the agent began.", time.monotonic() - core.began),
            ("queued_operations", "Operations without a thread.",
             core.quick.waiting + core.slow.waiting + core.starting.waiting),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"nativert_agent_{name}", text, value)


def render(core: Core) -> tuple[bytes, str]:
    """Return the text and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Node(core))
    return generate_latest(registry), CONTENT_TYPE_LATEST
