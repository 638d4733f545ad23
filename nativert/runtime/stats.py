"""Monitoring: an instance's figures from the kernel's counters, on demand."""

from __future__ import annotations

import threading
import time

import msgspec

from nativert.fdu.states import WITH_APPLICATION
from nativert.isolation.cgroups.driver import Sampler
from nativert.isolation.cgroups.limits import Pressure, Usage
from nativert.runtime import limits as limits_of
from nativert.runtime.context import Context
from nativert.runtime.observe import Observed
from nativert.runtime.release import attached
from nativert.runtime.views import Figures, Instance


class Monitor:
    """Keeps a sampler per instance and the sample before, for rates."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # A sampler must not be closed by one thread while another one reads from it.
        self._mutex = threading.RLock()
        self._samplers: dict[str, Sampler] = {}
        self._before: dict[str, tuple[int, float, int]] = {}

    def _usage(self, seen: Observed) -> Usage | None:
        if seen.facts is None or seen.state not in WITH_APPLICATION:
            self.forget(seen.row.uuid)
            return None
        sampler = self._samplers.get(seen.row.uuid)
        try:
            if sampler is None:
                sampler = self._context.cgroup(seen.row.uuid).sampler()
                self._samplers[seen.row.uuid] = sampler
            return sampler.sample()
        except OSError:
            # Removed between the look and the read, or from outside: no figures is the truth.
            self.forget(seen.row.uuid)
            return None

    def forget(self, uuid: str) -> None:
        """Close what is kept for an instance."""
        with self._mutex:
            self._before.pop(uuid, None)
            sampler = self._samplers.pop(uuid, None)
            if sampler is not None:
                sampler.close()

    def close(self) -> None:
        """Close everything."""
        for uuid in list(self._samplers):
            self.forget(uuid)

    def _cpu_ratio(self, seen: Observed, usage: Usage) -> float | None:
        """Return the cores used since the last sample of this run, or since its start."""
        if seen.facts is None or seen.facts.started_at is None:
            return None
        run, now = seen.facts.run, time.monotonic()
        before = self._before.get(seen.row.uuid)
        self._before[seen.row.uuid] = (run, now, usage.cpu_ns)
        if before is not None and before[0] == run:
            elapsed_s, used_ns = now - before[1], usage.cpu_ns - before[2]
        else:
            elapsed_s, used_ns = time.time() - seen.facts.started_at, usage.cpu_ns
        return None if elapsed_s <= 0 else max(0, used_ns) / 1e9 / elapsed_s

    def row(self, seen: Observed, *, measured: bool = True) -> Instance:
        """Return the row that ps shows; the counters are read only where *measured*."""
        usage = cpu_ratio = None
        if measured:
            with self._mutex:
                usage = self._usage(seen)
                cpu_ratio = None if usage is None else self._cpu_ratio(seen, usage)
        pid = None
        uptime_s = None
        if seen.facts is not None and seen.state in WITH_APPLICATION:
            noted = seen.facts.details.get("pid")
            pid = noted if isinstance(noted, int) and noted > 0 else None
            if seen.facts.started_at is not None:
                uptime_s = max(0.0, time.time() - seen.facts.started_at)
        return Instance(
            instance=seen.row.uuid,
            fdu=seen.row.fdu,
            name=seen.row.name,
            state=seen.state.value,
            node=self._context.name,
            pid=pid,
            restarts=seen.row.restarts,
            cpu_ratio=cpu_ratio,
            memory_bytes=None if usage is None else usage.working_set_bytes,
            pids=None if usage is None else usage.pids,
            uptime_s=uptime_s,
            end=seen.end,
        )

    def figures(self, seen: Observed) -> Figures:
        """Return everything that is measured; None where unknown."""
        with self._mutex:
            usage = self._usage(seen)
            cpu_ratio = None if usage is None else self._cpu_ratio(seen, usage)
        bare = Figures(instance=seen.row.uuid, name=seen.row.name, state=seen.state.value)
        if usage is None or seen.facts is None:
            return bare
        limits = limits_of.decode(seen.row.limits)
        received = sent = None
        links = attached(seen.facts)
        if links:
            try:
                counters = self._context.network.counters(links)
                received, sent = counters.rx_bytes, counters.tx_bytes
            except OSError:
                pass  # A link taken from outside has no figures.
        try:
            pressure = self._context.cgroup(seen.row.uuid).pressure()
        except OSError:
            pressure = Pressure()  # Removed from outside since the counters were read.
        return msgspec.structs.replace(
            bare,
            cpu_ratio=cpu_ratio,
            cpu_ns=usage.cpu_ns,
            throttled_ns=usage.throttled_ns,
            memory_bytes=usage.working_set_bytes,
            memory_max=None if limits is None else limits.memory_max,
            peak_bytes=usage.peak_bytes,
            anon_bytes=usage.anon_bytes,
            file_bytes=usage.file_bytes,
            swap_bytes=usage.swap_bytes,
            pids=usage.pids,
            pids_max=None if limits is None else limits.pids_max,
            io_read_bytes=usage.io_read_bytes,
            io_write_bytes=usage.io_write_bytes,
            net_rx_bytes=received,
            net_tx_bytes=sent,
            oom_kills=usage.oom_kills,
            cpu_pressure=pressure.cpu,
            memory_pressure=pressure.memory,
            io_pressure=pressure.io,
        )
