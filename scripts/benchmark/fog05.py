"""What fog05's own client adds to a start: FIMAPI, the agent's API and the runtime, in turn."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmark.figures import Samples

from nativert.agent.client import Client
from nativert.runtime.node import Node
from nativert.store.claims import Claims
from nativert.store.paths import Paths

_AGENT_S = 30.0
_SIGKILL = 9
_WAYS = ("FIMAPI", "agent's API", "runtime")
_DESCRIPTOR: dict[str, Any] = {
    "id": "bench",
    "name": "bench",
    "hypervisor": "BARE",
    "migration_kind": "COLD",
    "command": {"binary": "/bin/sleep", "args": ["1000000"]},
    "computation_requirements": {
        "cpu_arch": platform.machine(),
        "cpu_min_freq": 0,
        "cpu_min_count": 1,
        "ram_size_mb": 1.0,
        "storage_size_gb": 0.0,
    },
    **{n: [] for n in ("storage", "interfaces", "io_ports", "connection_points", "depends_on")},
}


def main(count: int) -> int:
    """Measure *count* starts in each way, and print a table."""
    from nativert import fog05

    fog05.install()
    with warnings.catch_warnings():
        # Its sources are older than the interpreter.
        warnings.simplefilter("ignore")
        from fog05 import FIMAPI
        from fog05_sdk.interfaces.FDU import FDU

    samples = Samples()
    with tempfile.TemporaryDirectory(prefix="nativert-bench-") as directory:
        root, port = Path(directory) / "node", _free_port()
        with Node(root) as node, _agent(root, port):
            api = FIMAPI(f"127.0.0.1:{port}")
            fdu = api.fdu.onboard(FDU(_DESCRIPTOR)).get_uuid()
            instance = api.fdu.define(fdu, node.identity.id).get_uuid()
            client = Client(Paths(root).api_socket, direct=lambda: node)
            starts: tuple[Callable[[str], object], ...] = (api.fdu.start, client.run, node.run)
            try:
                api.fdu.configure(instance)
                for turn in range(count + 1):
                    for way, start in zip(_WAYS, starts, strict=True):
                        us = _measured(start, instance)
                        node.kill(instance, _SIGKILL)
                        node.wait(instance)
                        if turn:
                            samples.add(way, "run", "hot", us)
            finally:
                api.close()
                node.remove(instance, force=True)
        with Node(root) as node:
            node.gc()
            identity = node.identity.id
        Claims().release_node(identity)
    print(f"{'start by':15}{'p50':>10}{'p95':>10}  microseconds, n={count}")
    for way in _WAYS:
        p50, p95 = (samples.percentile(way, "run", "hot", percent) or 0 for percent in (50, 95))
        print(f"{way:15}{p50:10.0f}{p95:10.0f}")
    return 0


def _measured(start: Callable[[str], object], instance: str) -> float:
    began = time.perf_counter()
    start(instance)
    return (time.perf_counter() - began) * 1e6


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def _agent(root: Path, port: int) -> Iterator[None]:
    paths = Paths(root)
    paths.etc.mkdir(parents=True, exist_ok=True)
    paths.config.write_text(f'log_level = "error"\n[zenoh]\nlisten = ["tcp/127.0.0.1:{port}"]\n')
    environment = os.environ | {"NATIVERT_ROOT": str(root)}
    command = [sys.executable, "-c", "from nativert.cli.main import main; main()", "agent"]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _AGENT_S
        while not paths.api_socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("bench: the agent does not start")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()
