"""Agents killed at any moment while instances live their lives, and what must come of it.

Half of the instances only run and count: they must never notice. The others are taken through
their states by threads, each of which knows where its own must be.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import invariants
import scale
from agents import Agent, serving
from agents import start as start_agent
from nodes import log_text, make_descriptor, remove_node, until

from nativert.agent.client import Client, LostError
from nativert.errors import NativertError
from nativert.fdu.states import Operation, State, allowed, next_state
from nativert.runtime.node import Node
from nativert.runtime.views import Event
from nativert.store.paths import Paths

THREADS = 4
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep {pause_s}; done"
# Of those that an instance which stays defined is taken through.
_VERBS = {"configure", "run", "pause", "resume", "scale", "stop", "clean"}
_AT_THE_LATEST_S = 0.5


@dataclass
class Figures:
    """What a storm has done; `broken` is what it should not have."""

    kills: int = 0
    before_it_served: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    events: int = 0
    lines: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


class Driver(threading.Thread):
    """Takes its own instances through their states, by whatever agent there is."""

    def __init__(self, root: Path, refs: list[str], seed: int, ending: threading.Event) -> None:
        super().__init__(name=f"driver {refs[0]}")
        self._path = Paths(root).api_socket
        self._random = random.Random(seed)
        self._expected: dict[str, set[State]] = {ref: {State.DEFINED} for ref in refs}
        self._ending = ending
        self.asked: Counter[str] = Counter()
        self.broken: list[str] = []

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                with Client(self._path, direct=_alone) as client:
                    while not self._ending.is_set():
                        self._operate(client)
            except (OSError, LostError):
                self._ending.wait(0.02)  # There is no agent at the moment.
            except Exception as e:
                self.broken.append(f"{type(e).__name__}: {e}")

    def _operate(self, client: Client) -> None:
        ref = self._random.choice(list(self._expected))
        state = self.look(State(client.get(ref).state), ref)
        verb = self._random.choice([verb for verb in allowed(state) if verb in _VERBS])
        after = next_state(state, Operation(verb))
        arguments: dict[str, Any] = {"change": {"pids_max": 99}} if verb == "scale" else {}
        self._expected[ref] = {state, after}
        try:
            getattr(client, verb)(ref, **arguments)
        except LostError:
            self.asked["lost"] += 1
            raise
        except NativertError as e:
            self.asked["refused"] += 1
            self.broken.append(f"{ref}: {verb} in {state.value}: {e}")
        else:
            self.asked["accepted"] += 1
            self._expected[ref] = {after}

    def look(self, state: State, ref: str) -> State:
        """Hold the state of an instance against what was answered last."""
        if state not in self._expected[ref]:
            words = sorted(each.value for each in self._expected[ref])
            self.broken.append(f"I1 {ref} is {state.value}, not {' or '.join(words)}")
        self._expected[ref] = {state}
        return state

    def refs(self) -> list[str]:
        """Return whose driver it is."""
        return list(self._expected)


class Told:
    """Reads the events as they come, and sees a number that is missing."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._cursor = node.latest_event()
        self.of: dict[str, list[Event]] = defaultdict(list)
        self.count = 0
        self.broken: list[str] = []

    def read(self) -> None:
        while found := self._node.events(self._cursor, limit=10_000):
            numbers = [event.seq for event in found]
            if numbers != list(range(self._cursor + 1, self._cursor + 1 + len(found))):
                self.broken.append(f"I5 events between {self._cursor} and {numbers[-1]} are gone")
            self._cursor = numbers[-1]
            self.count += len(found)
            for event in found:
                self.of[event.instance].append(event)


def storm(root: Path, *, kills: int, instances: int, seed: int, pause_s: float) -> Figures:
    """Kill *kills* agents over *instances*, each of which counts every *pause_s*."""
    figures, chance = Figures(), random.Random(seed)
    began = time.monotonic()
    with _removed(root, figures) as node:
        shell = COUNT.format(pause_s=pause_s)
        names = [f"app{number}" for number in range(instances)]
        uuids = {
            name: node.define(make_descriptor(name=name, shell=shell, veth=n % 5 == 0)).instance
            for n, name in enumerate(names)
        }
        steady, busy = names[::2], names[1::2]
        for name in steady:
            node.configure(name)
            node.run(name)
        node.context.store.flush()
        records = invariants.records(root)
        pids = {name: (node.get(name).pid, _start(root, uuids[name])) for name in steady}
        told = Told(node)
        ending = threading.Event()
        shares = [busy[n::THREADS] for n in range(THREADS)]
        drivers = [Driver(root, s, chance.random(), ending) for s in shares if s]  # type: ignore[arg-type]
        for driver in drivers:
            driver.start()
        try:
            for _ in range(kills):
                _one_kill(root, chance, figures)
                told.read()
                figures.broken += [
                    f"I6 {name} is not the process it was"
                    for name, (pid, start) in pids.items()
                    if not invariants.lives(pid, start)
                ]
                if figures.broken:
                    break
            with serving(root):
                ending.set()
                for driver in drivers:
                    driver.join(scale.LONG_S)
                rows = {row.name: row for row in node.list()}
                for driver in drivers:
                    for ref in driver.refs():
                        driver.look(State(rows[ref].state), ref)
            told.read()
        finally:
            ending.set()
        for driver in drivers:
            figures.asked += driver.asked
            figures.broken += driver.broken
        figures.broken += told.broken
        figures.events = told.count
        figures.broken += invariants.i1_records_kept(records, invariants.records(root))
        figures.broken += invariants.i3_truthful(root, list(rows.values()))
        figures.broken += invariants.i4_one_copy(root)
        figures.broken += invariants.i5_states(list(rows.values()))
        for name, uuid in uuids.items():
            state = "RUNNING" if name in steady else "DEFINED"
            figures.broken += invariants.i5_edges(told.of[uuid], state=state)
            figures.broken += invariants.lines_lost(node, uuid)
            figures.lines += len(log_text(node, uuid).split())
        for name in steady:
            counted = [int(text) for text in log_text(node, name).split()]
            if counted != list(range(1, len(counted) + 1)):
                figures.broken.append(f"I6 a line of {name} is missing")
            if (rows[name].pid, rows[name].restarts) != (pids[name][0], 0):
                figures.broken.append(f"I6 {name} was started again")
    figures.seconds = time.monotonic() - began
    return figures


def _one_kill(root: Path, chance: random.Random, figures: Figures) -> None:
    with (root.parent / "agent.log").open("ab") as log:
        process = start_agent(root, stderr=log.fileno())
    try:
        if chance.random() < 0.8:
            agent = Agent(root, process, root.parent / "agent.log")
            until(lambda: _serves(agent, process), deadline_s=scale.LONG_S, what="it serves")
        else:
            figures.before_it_served += 1
        time.sleep(chance.uniform(0.001, _AT_THE_LATEST_S))
    finally:
        process.kill()
        code = process.wait()
    assert code == -signal.SIGKILL, f"an agent ended by itself with {code}"
    figures.kills += 1


def _serves(agent: Agent, process: Popen[bytes]) -> bool:
    assert process.poll() is None, agent.log.read_text()[-2000:]
    try:
        return agent.ask("GET", "/healthz")[0] == 200
    except OSError:
        return False


def _start(root: Path, uuid: str) -> object:
    return (invariants.noted(root, uuid) or {})["details"]["start"]


def _alone() -> Node:
    raise LostError("there is no agent")


@contextmanager
def _removed(root: Path, figures: Figures) -> Iterator[Node]:
    """Remove all in the end, and see that nothing is left."""
    try:
        with Node(root) as node:
            # What the node makes once, for all its instances.
            node.configure(node.define(make_descriptor(name="first", veth=True)).instance)
            node.remove("first")
            before = invariants.footprint(root)
            yield node
            for row in node.list():
                node.remove(row.instance, force=True)
            node.gc()
            end = time.monotonic() + scale.LONG_S
            while (now := invariants.footprint(root)) - before and time.monotonic() < end:
                time.sleep(0.05)
            figures.broken += invariants.i2_nothing_left(before & now, now)
    finally:
        remove_node(root)
