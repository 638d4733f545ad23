"""What a fleet on this host costs: its making, a request to another node, a node that dies."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nativert.agent.client import Client
from nativert.fdu.descriptor import decode
from nativert.fleet.down import down
from nativert.fleet.plan import Member
from nativert.fleet.up import Fleet, up
from nativert.isolation.network import named
from nativert.isolation.network.netns import inside
from nativert.plugin.zenoh_connector import ZenohConnector
from nativert.plugin.zenoh_session import Settings, open_session
from nativert.runtime.facade import Facade
from nativert.store.locks import NodeLock, holder

_NODES: Final = 3
_RECORDS: Final = 1000
_FLEETS: Final = 5
_PATIENCE_S: Final = 60.0
_ALL: Final = "/agfos/0/tenants/0/nodes/*/fdu/*/instances/*/info"


def main(count: int) -> int:
    """Measure, and print one line for each figure."""
    fleets = max(1, min(_FLEETS, count))
    print(f"{'milliseconds':46}{'best':>10}{'p50':>10}{'worst':>10}")
    made: list[float] = []
    removed: list[float] = []
    gone: dict[str, list[float]] = {"killed": [], "frozen": []}
    with tempfile.TemporaryDirectory(prefix="nativert-bench-") as directory:
        root = Path(directory) / "fleet"
        for turn in range(fleets):
            began = time.perf_counter()
            fleet = up(root, _NODES)
            made.append(time.perf_counter() - began)
            try:
                if turn == 0:
                    _requests(fleet, count)
                for how, times in gone.items():
                    times.append(_seen_gone(fleet, how))
            finally:
                removed.append(_timed(lambda: down(root)))
    _line(f"up --nodes {_NODES}, until each knows all", made)
    _line("down", removed)
    for how, times in gone.items():
        _line(f"a node that is {how} is seen gone", times)
    return 0


def _timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _line(what: str, seconds: list[float]) -> None:
    figures = (min(seconds), statistics.median(seconds), max(seconds))
    print(f"{what:46}" + "".join(f"{s * 1000:10.1f}" for s in figures), flush=True)


def _client(node: Member, on: str | None = None) -> Client:
    return Client(node.paths.api_socket, direct=_alone, node=on)


def _alone() -> Facade:
    sys.exit("bench: an agent has ended")


def _requests(fleet: Fleet, count: int) -> None:
    one, two, *_ = fleet.plan.nodes
    text = (
        '{"id": "bench", "name": "bench-%d", "hypervisor": "BARE",'
        ' "command": {"binary": "/bin/sleep", "args": ["1000000"]}}'
    )
    with _client(one) as here, _client(two) as there, _client(one, two.name) as through:
        rows = [there.define(decode((text % n).encode(), source="bench")) for n in range(_RECORDS)]
        first, name = rows[0].instance, rows[0].name
        # First: it waits until everything is published, and all is quiet.
        netns = named.open_named(one.netns)
        try:
            inside(netns, lambda: _records(one, two, count))
        finally:
            os.close(netns)
        questions: tuple[tuple[str, Callable[[], object]], ...] = (
            ("get one, of its own node", lambda: there.get(first)),
            ("get one of another node, by NODE/NAME", lambda: here.get(f"{two.name}/{name}")),
            ("get one of another node, looked for by name", lambda: here.get(name)),
            (f"list {_RECORDS} instances, of its own node", there.list),
            (f"list {_RECORDS} instances of another node", through.list),
            (f"list {_RECORDS} instances of all nodes", here.everywhere),
        )
        for what, ask in questions:
            ask()
            _line(what, [_timed(ask) for _ in range(count)])


def _records(one: Member, two: Member, count: int) -> None:
    """Read fog05's records from the place of another node, over Zenoh alone."""
    options = tomllib.loads(one.paths.config.read_text())["zenoh"]["options"]
    connector = ZenohConnector(open_session(Settings(connect=(two.endpoint,), more=options)))
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while len(connector.get(_ALL)) < _RECORDS:
            if time.monotonic() > deadline:
                sys.exit("bench: not all records are published")
            time.sleep(0.1)
        ask = lambda: connector.get(_ALL)  # noqa: E731
        times = [_timed(ask) for _ in range(count)]
        _line(f"read {_RECORDS} records of fog05 from another node", times)
    finally:
        connector.close()


def _seen_gone(fleet: Fleet, how: str) -> float:
    """Kill or freeze one agent; return when those that are left say that it is gone."""
    one, two, three = fleet.plan.nodes
    victim, others = (three, (one, two)) if how == "killed" else (two, (one,))
    pid = holder(NodeLock(victim.paths, "agent").path)
    if pid is None:
        sys.exit("bench: an agent has ended")
    clients = [_client(node) for node in others]
    os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    began = time.perf_counter()
    for client in clients:
        with client:
            while any(row.name == victim.name and row.alive for row in client.nodes()):
                if time.perf_counter() - began > _PATIENCE_S:
                    sys.exit(f"bench: {victim.name} is not seen gone")
    took_s = time.perf_counter() - began
    if how == "frozen":
        os.kill(pid, signal.SIGCONT)
    return took_s
