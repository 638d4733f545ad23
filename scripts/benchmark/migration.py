"""What a move between two nodes of a fleet costs its application, and a client on a third node.

The application counts: each number goes to its /data, to a file outside of all nodes, and to
whoever is connected. Beside it a program keeps half a processor busy.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nativert.agent.client import Client
from nativert.fdu.descriptor import Descriptor, decode
from nativert.fleet.down import down
from nativert.fleet.plan import Member
from nativert.fleet.up import up
from nativert.isolation.network import named
from nativert.isolation.network.netns import inside
from nativert.runtime.facade import Facade

_NODES: Final = 3
_BALLAST_BYTES: Final = 4 << 20
_PORT: Final = 7000
_CONNECT_S: Final = 0.2
_PAUSE_S: Final = 0.01
_SILENCE_S: Final = 1.0
_PATIENCE_S: Final = 60.0
_COUNTER: Final = """
import fcntl, os, select, signal, socket, sys, time
ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(1))
log = os.open("/witness/numbers", os.O_WRONLY | os.O_APPEND)
try:
    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    os.write(log, b"two copies\\n")
n = int(open("/data/n").read()) if os.path.exists("/data/n") else 0
listener = socket.create_server(("", int(sys.argv[1])))
clients = []
while not ends:
    n += 1
    with open("/data/n.new", "w") as file:
        file.write(str(n))
    os.rename("/data/n.new", "/data/n")
    os.write(log, f"{n} {time.monotonic_ns()}\\n".encode())
    for client in list(clients):
        try:
            client.send(f"{n}\\n".encode(), socket.MSG_DONTWAIT)
        except OSError:
            clients.remove(client)
    if select.select([listener], [], [], 0.005)[0]:
        clients.append(listener.accept()[0])
"""
_BUSY: Final = "while :; do :; done"


def main(count: int) -> int:
    """Move the counter *count* times, and print one line for each figure; 1 if one is wrong."""
    with tempfile.TemporaryDirectory(prefix="nativert-bench-") as directory:
        root, witness = Path(directory) / "fleet", Path(directory) / "witness"
        # The application is another user on each node.
        os.chmod(directory, 0o755)
        witness.mkdir(mode=0o755)
        numbers = witness / "numbers"
        numbers.touch()
        numbers.chmod(0o666)
        fleet = up(root, _NODES)
        try:
            return _moved(fleet.plan.nodes, numbers, count)
        finally:
            down(root)


def _moved(nodes: list[Member], numbers: Path, count: int) -> int:
    one, two, three = nodes
    mounts = [{"source": str(numbers.parent), "target": "/witness", "read_only": False}]
    with _client(one) as here, _client(two) as there:
        _start(here, "load", ["/bin/sh", "-c", _BUSY], {"cpu": {"max": 0.5}})
        counter = ["/usr/bin/python3", "-u", "-c", _COUNTER, str(_PORT)]
        _start(here, "counter", counter, {"mounts": mounts, "network": {"ports": ["17000:7000"]}})
        uuid = here.get("counter").instance
        address = here.inspect(uuid)["native"]["interfaces"][0]["address"]
        ballast = one.paths.instance_lib(uuid) / "data" / "ballast"
        ballast.write_bytes(os.urandom(_BALLAST_BYTES))
        netns = named.open_named(three.netns)
        watch = _Watch(netns, address)
        took: list[float] = []
        waited: list[float] = []
        try:
            watch.more()
            for turn in range(count):
                source, target = ((here, two), (there, one))[turn % 2]
                began = time.monotonic()
                told = source.migrate(uuid, target.name)
                took.append(time.monotonic() - began)
                if told["addresses"] != {"eth0": address}:
                    sys.exit(f"bench: it has {told['addresses']} there, and not {address}")
                watch.more()
                waited.append(watch.longest())
        finally:
            watch.close()
            os.close(netns)
        (here, there)[count % 2].stop(uuid)
    return _tell(numbers, took, waited, watch.silent)


def _tell(numbers: Path, took: list[float], waited: list[float], silent: int) -> int:
    lines = [line.split() for line in numbers.read_text().splitlines()]
    whole = [int(line[0]) for line in lines if len(line) == 2 and line[0].isdigit()]
    right = len(whole) == len(lines) and whole == list(range(1, len(whole) + 1))
    at = [int(line[1]) / 1e9 for line in lines if len(line) == 2]
    # Each move stands out: nothing else takes the counter so long.
    gaps = sorted((b - a for a, b in itertools.pairwise(at)), reverse=True)[: len(took)]
    said = "no number repeated or skipped" if right else "NUMBERS ARE REPEATED OR SKIPPED"
    print(f"{len(took)} moves, {len(whole)} numbers: {said}")
    print(f"{'milliseconds':46}{'p50':>10}{'p95':>10}{'worst':>10}")
    _line("between two numbers, over a move", gaps)
    _line("between two that a client on node-3 got", waited)
    _line("the call that moves it", took)
    if silent:
        print(f"{silent} times the client heard neither a number nor an end for {_SILENCE_S:g} s")
    return 0 if right else 1


def _line(what: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    figures = (statistics.median(ordered), p95, ordered[-1])
    print(f"{what:46}" + "".join(f"{s * 1000:10.1f}" for s in figures), flush=True)


def _client(node: Member) -> Client:
    return Client(node.paths.api_socket, direct=_alone)


def _alone() -> Facade:
    sys.exit("bench: an agent has ended")


def _start(node: Client, name: str, argv: list[str], native: dict[str, Any]) -> None:
    document = {
        "id": name,
        "name": name,
        "hypervisor": "BARE",
        "command": {"binary": argv[0], "args": argv[1:]},
        "interfaces": [{"name": "eth0"}],
        "native": native,
    }
    descriptor: Descriptor = decode(json.dumps(document).encode(), source="bench")
    instance = node.define(descriptor).instance
    node.configure(instance)
    node.run(instance)


class _Watch:
    """A client that connects again and again to one address, and notes when numbers come."""

    def __init__(self, netns: int, address: str) -> None:
        self._open: Callable[[], socket.socket] = lambda: inside(netns, socket.socket)
        self._address = address
        self._changed = threading.Condition()
        self._seen = 0
        self._longest = 0.0
        self._ended = False
        self.silent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def more(self) -> None:
        """Wait for numbers of a connection that is served from now on."""
        with self._changed:
            wanted = self._seen + 5
            if not self._changed.wait_for(lambda: self._seen >= wanted, _PATIENCE_S):
                sys.exit(f"bench: nobody serves at {self._address}")

    def longest(self) -> float:
        """Return the longest time between two numbers since the last call, in seconds."""
        with self._changed:
            longest, self._longest = self._longest, 0.0
        return longest

    def close(self) -> None:
        self._ended = True
        self._thread.join()

    def _run(self) -> None:
        last = 0.0
        while not self._ended:
            with self._open() as client:
                client.settimeout(_CONNECT_S)
                try:
                    client.connect((self._address, _PORT))
                    client.settimeout(_SILENCE_S)
                    while not self._ended and client.recv(4096):
                        now = time.monotonic()
                        with self._changed:
                            self._longest = max(self._longest, now - (last or now))
                            self._seen += 1
                            self._changed.notify_all()
                        last = now
                except TimeoutError:
                    self.silent += client.gettimeout() == _SILENCE_S
                except OSError:
                    pass  # Refused, or reset: it is on its way.
            time.sleep(_PAUSE_S)
