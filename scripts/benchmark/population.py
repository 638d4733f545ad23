"""Many instances at once: rate, memory, sampling, and `ps` from the shell."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from benchmark.peers import OciPeer
from benchmark.subject import Subject

from nativert.isolation.cgroups import detect
from nativert.store.claims import Claims
from nativert.store.identity import open_identity
from nativert.store.paths import Paths

_T = TypeVar("_T")

PS_INSTANCES = 100
_CHUNK = 25
_PS_REPEATS = 10
_SAMPLING_REPEATS = 10


def measure(subject: Subject, crun: OciPeer, count: int) -> Iterator[tuple[str, str]]:
    """Start *count* instances of either, in turns, and yield (what, figure)."""
    uuids = subject.define_many(count)
    ours_us = theirs_us = 0.0
    ours_bytes = theirs_bytes = 0
    for first in range(0, count, _CHUNK):
        chunk = uuids[first : first + _CHUNK]
        us, used = _costs(subject.start_another, chunk)
        ours_us, ours_bytes = ours_us + us, ours_bytes + used
        numbers = range(first, first + len(chunk))
        us, used = _costs(crun.start_another, numbers)
        theirs_us, theirs_bytes = theirs_us + us, theirs_bytes + used
        if first + len(chunk) == PS_INSTANCES or (first + len(chunk) == count < PS_INSTANCES):
            ps_ms, instances = _ps(subject), first + len(chunk)
    ours, theirs = count / ours_us * 1e6, count / theirs_us * 1e6
    yield (
        f"configure+run, {count} instances",
        f"{ours:.0f}/s, crun run -d {theirs:.0f}/s: {ours / theirs:.2f} x (must 1.5 x)",
    )
    yield from _memory(subject, count, ours_bytes, theirs_bytes)
    yield (
        f"sampling cpu, memory, pids of {count}",
        f"{_sampling_ms(subject, uuids):.2f} ms (must 15 ms for 1000)",
    )
    yield f"nativert ps, {instances} instances", f"{ps_ms:.0f} ms (must 150 ms)"


def _costs(start: Callable[[_T], float], which: Iterable[_T]) -> tuple[float, int]:
    before = _available_bytes()
    us = sum(start(each) for each in which)
    return us, before - _available_bytes()


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise OSError("no MemAvailable in /proc/meminfo")


def _memory(
    subject: Subject, count: int, ours_bytes: int, theirs_bytes: int
) -> Iterator[tuple[str, str]]:
    parent = detect(f"nativert-{open_identity(Paths(subject.root), Claims()).tag}")
    inits = parent.open("init").pids()
    launchers = parent.open("launcher").pids()
    pss = [_pss_bytes(pid) for pid in inits]
    applications = [
        _pss_bytes(instance.pid) for instance in subject.node.list() if instance.pid is not None
    ]
    application = sum(applications) / max(1, len(applications))
    figure = (
        f"{(ours_bytes / count - application) / 2**20:.2f} MB beside the application (must 2.0 MB);"
        f" crun {(theirs_bytes / count - application) / 2**20:.2f} MB"
    )
    yield "memory per instance (MemAvailable)", figure
    yield "PSS of an init", f"{sum(pss) / max(1, len(pss)) / 2**20:.2f} MB"
    for pid in launchers:
        yield "PSS of the launcher", f"{_pss_bytes(pid) / 2**20:.2f} MB"


def _pss_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _sampling_ms(subject: Subject, uuids: list[str]) -> float:
    driver = detect(f"nativert-{open_identity(Paths(subject.root), Claims()).tag}")
    samplers = [driver.open(f"i-{uuid}").sampler() for uuid in uuids]
    try:
        times = []
        gc.collect()
        for _ in range(_SAMPLING_REPEATS + 1):
            start = time.perf_counter_ns()
            for sampler in samplers:
                sampler.core()
            times.append((time.perf_counter_ns() - start) / 1e6)
        # The first opens the files.
        return sorted(times[1:])[_SAMPLING_REPEATS // 2]
    finally:
        for sampler in samplers:
            sampler.close()


def _ps(subject: Subject) -> float:
    environment = os.environ | {"NATIVERT_ROOT": str(subject.root)}
    command = [str(Path(sys.executable).with_name("nativert")), "ps"]
    times = []
    for _ in range(_PS_REPEATS):
        start = time.perf_counter_ns()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return sorted(times)[_PS_REPEATS // 2]
