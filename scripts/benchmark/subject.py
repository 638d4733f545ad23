"""nativert itself: the operations through `runtime.Node`, on a node of its own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nativert.fdu.descriptor import Descriptor, decode
from nativert.isolation.cgroups import detect
from nativert.runtime.node import Node
from nativert.store.claims import Claims
from nativert.store.identity import open_identity
from nativert.store.paths import Paths

# Where /run is on a host: in memory. A temporary root would else put it on the disk.
_MEMORY = Path("/dev/shm")


def _descriptor(application: Path, *, argument: str = "", veth: bool = False) -> Descriptor:
    document: dict[str, Any] = {
        "id": "bench",
        "name": "bench",
        "command": {"binary": "/bench/app", "args": [argument] if argument else []},
        "hypervisor": "BARE",
        "native": {
            "cpu": {"max": 1.0},
            "memory": {"max": "64M"},
            "pids": {"max": 64},
            "mounts": [{"source": str(application.parent), "target": "/bench"}],
        },
    }
    if veth:
        document["interfaces"] = [{"name": "eth0"}]
    return decode(json.dumps(document).encode(), source="bench")


class Subject:
    """One node and the instance that is under measurement."""

    name = "nativert"

    def __init__(self, directory: Path, application: Path) -> None:
        self.root = directory / "node"
        self.root.mkdir()
        self._run = Path(tempfile.mkdtemp(prefix="nativert-bench-", dir=_MEMORY))
        (self.root / "run").symlink_to(self._run)
        self.node = Node(self.root)
        self._stays = _descriptor(application)
        self._ends = _descriptor(application, argument="true")
        self._veth = _descriptor(application, veth=True)
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._uuid = ""
        self._turn = 0
        node = self.node
        self.operations: dict[str, Callable[[], float]] = {
            "define": lambda: self._define(self._stays),
            "configure": lambda: self._timed(node.configure),
            "run": lambda: self._timed(node.run),
            "pause": lambda: self._timed(node.pause),
            "resume": lambda: self._timed(node.resume),
            "scale": self._scale,
            "exec": lambda: self._timed(self._exec),
            "stop": lambda: self._timed(node.stop),
            "clean": lambda: self._timed(node.clean),
            "undefine": lambda: self._timed(node.undefine),
            "define-veth": lambda: self._define(self._veth),
            "configure-veth": lambda: self._timed(node.configure),
            "clean-veth": lambda: self._timed(node.clean),
            "undefine-veth": lambda: self._timed(node.undefine),
            "whole": self._whole,
        }

    def _timed(self, operation: Callable[[str], object]) -> float:
        start = time.perf_counter_ns()
        operation(self._uuid)
        return (time.perf_counter_ns() - start) / 1000

    def _define(self, descriptor: Descriptor) -> float:
        start = time.perf_counter_ns()
        self._uuid = self.node.define(descriptor).instance
        return (time.perf_counter_ns() - start) / 1000

    def _scale(self) -> float:
        self._turn ^= 1
        change = {
            "cpu_max": 0.5 + self._turn / 10,
            "memory_max": (96 + self._turn) << 20,
            "pids_max": 60 + self._turn,
        }
        return self._timed(lambda uuid: self.node.scale(uuid, change))

    def _exec(self, uuid: str) -> None:
        session = self.node.exec(uuid, ["/bin/true"], stdio=(self._null,) * 3)
        try:
            if code := session.wait():
                raise RuntimeError(f"exec true ended with code {code}")
        finally:
            session.close()

    def _whole(self) -> float:
        node = self.node
        start = time.perf_counter_ns()
        uuid = node.define(self._ends).instance
        node.configure(uuid)
        node.run(uuid)
        node.wait(uuid)
        node.clean(uuid)
        node.undefine(uuid)
        return (time.perf_counter_ns() - start) / 1000

    def hurry(self) -> None:
        """Give the launcher, and with it all inits to come, the priority of this process."""
        driver = detect(f"nativert-{open_identity(Paths(self.root), Claims()).tag}")
        for pid in driver.open("launcher").pids():
            os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0))

    def define_many(self, count: int) -> list[str]:
        """Define instances and return their UUIDs."""
        return [self.node.define(self._stays, name=f"many-{n}").instance for n in range(count)]

    def start_another(self, uuid: str) -> float:
        """Configure and run a defined instance; return the time in microseconds."""
        start = time.perf_counter_ns()
        self.node.configure(uuid)
        self.node.run(uuid)
        return (time.perf_counter_ns() - start) / 1000

    def reset(self) -> None:
        """Remove every instance, whatever state it is in."""
        for instance in self.node.list():
            self.node.remove(instance.instance, force=True)

    def close(self) -> None:
        """Remove the node with everything of it on the host."""
        try:
            self.reset()
            self.node.gc()
        finally:
            self.node.close()
            os.close(self._null)
            Claims().release_node(open_identity(Paths(self.root), Claims()).id)
            shutil.rmtree(self._run)
