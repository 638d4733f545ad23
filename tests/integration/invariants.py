"""The six invariants that hold after every fault, each as a function that returns what breaks it.

The evidence is read from files and kernel here, not by the code that is under test.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import scale
from nodes import driver_of, log_text

from nativert.fdu.states import TRANSITIONS, State
from nativert.isolation.cgroups.driver import INIT
from nativert.runtime.node import Node
from nativert.runtime.views import Event, Instance
from nativert.store.claims import Claims
from nativert.store.identity import open_identity
from nativert.store.paths import Paths

STAY = {"DEFINED", "CONFIGURED", "RUNNING", "PAUSED"}
WITH_INIT = STAY - {"DEFINED"}
WITH_APPLICATION = {"RUNNING", "PAUSED"}
# What may come and go by itself, or says nothing: locks stay, sockets and databases have sides.
_PASSING = (".lock", ".log", "-wal", "-shm", ".sock", "exit.json", "boot.json")
_SERVED = re.compile(r"/i/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?: \(deleted\))?\Z")
_EDGES = {(source, row.to) for (source, _), row in TRANSITIONS.items()}
_REPLACED = ("settled", "state", "cleaned", "lost")

Record = tuple[str, ...]


# -- I1: no record lost, no accepted command forgotten ---------------------------------------


def records(root: Path) -> dict[str, Record]:
    """Return what was entered of each instance, by its UUID."""
    path = Paths(root).database
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        found = connection.execute(
            "SELECT uuid, name, fdu, descriptor, record, id_range FROM instances"
        ).fetchall()
    finally:
        connection.close()
    return {row[0]: tuple(str(value) for value in row[1:]) for row in found}


def i1_records_kept(
    before: dict[str, Record], after: dict[str, Record], *, may_go: Iterable[str] = ()
) -> list[str]:
    """Every record of *before* is there and says the same, except for those that *may_go*."""
    excused = set(may_go)
    return [
        f"I1 the record of {record[0]} is {'changed' if uuid in after else 'lost'}"
        for uuid, record in before.items()
        if after.get(uuid) != record and not (uuid in excused and uuid not in after)
    ]


def i1_command_kept(state: str, accepted: Sequence[str], said: str) -> list[str]:
    """The instance is where the command that *said* so may have left it."""
    if state in accepted:
        return []
    return [f"I1 after a command that {said} it is {state or 'gone'}, not {' or '.join(accepted)}"]


# -- I2: nothing is left ----------------------------------------------------------------------


def footprint(root: Path) -> Counter[str]:
    """Return one line for each thing that the host has of the node under *root*."""
    identity = open_identity(Paths(root), Claims())
    driver = driver_of(root)
    found: Counter[str] = Counter(f"cgroup {name}" for name in driver.names())
    for name in driver.names():
        found[f"processes in {name}"] = len(driver.open(name).pids())
    found.update(f"init of {uuid}" for uuid in inits(root).values())
    names = [name for _, name in socket.if_nameindex()]
    found.update(f"link {name}" for name in names if name.startswith(f"nv{identity.tag}"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if str(root) in line.split()[3:5]:
            found[f"mount {line.split()[4]}"] += 1
    for uuid, claims in Claims().ports(identity.id).items():
        found[f"ports of {uuid}"] += len(claims)
    for directory in (Paths(root).run, Paths(root).lib):
        for where, _, files in os.walk(directory):
            found.update(
                f"file {Path(where, name).relative_to(root)}"
                for name in files
                if not name.endswith(_PASSING) or name.endswith(".tmp")
            )
    return found


def inits(root: Path) -> dict[int, str]:
    """Return which instance each init of the node serves, by the directory that it has open."""
    found = {}
    for pid in driver_of(root).open(INIT).pids():
        # From its namespace the path is another one, but for its end.
        served = (_SERVED.search(target) for target in open_files(pid))
        found[pid] = next((match[1] for match in served if match), "nobody")
    return found


def open_files(pid: int) -> list[str]:
    """Return what a process has open, as far as it can be asked."""
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    except OSError:
        pass
    return found


def i2_nothing_left(before: Counter[str], after: Counter[str]) -> list[str]:
    """The host has of the node what it had before."""
    return [
        *(f"I2 left: {line} ({count})" for line, count in (after - before).items()),
        *(f"I2 gone: {line} ({count})" for line, count in (before - after).items()),
    ]


# -- I3: the state is true --------------------------------------------------------------------


def noted(root: Path, uuid: str) -> dict[str, Any] | None:
    """Return what stands in the instance's facts of this boot."""
    try:
        data = (Paths(root).instance_run(uuid) / "boot.json").read_bytes()
    except FileNotFoundError:
        return None
    found: dict[str, Any] = msgspec.json.decode(data)
    return found


def lives(pid: object, start: object) -> bool:
    """Tell whether a process with this start time (field 22 of proc_pid_stat(5)) runs."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return stat[0] not in "ZX" and stat[19] == str(start)


def i3_truthful(root: Path, rows: Sequence[Instance]) -> list[str]:
    """RUNNING exactly where an init with the noted start time lives, and its application too."""
    broken = []
    serving = set(inits(root).values())
    driver = driver_of(root)
    for row in rows:
        facts = noted(root, row.instance)
        cgroup = driver.open(f"i-{row.instance}")
        inside = cgroup.pids()
        if row.state not in WITH_INIT:
            if row.instance in serving or inside:
                broken.append(f"I3 {row.name} is {row.state}, and lives")
            continue
        if facts is None or not lives(facts["init_pid"], facts["init_start"]):
            broken.append(f"I3 {row.name} is {row.state} without its init")
            continue
        if row.state not in WITH_APPLICATION:
            if inside:
                broken.append(f"I3 {row.name} is {row.state}, and {len(inside)} processes run")
            continue
        details = facts["details"]
        if row.pid != details.get("pid") or not lives(row.pid, details.get("start")):
            broken.append(f"I3 {row.name} is {row.state} without its application")
        elif row.pid not in inside:
            broken.append(f"I3 {row.name} runs outside of its cgroup")
        elif cgroup.frozen() != (row.state == "PAUSED"):
            broken.append(f"I3 {row.name} is {row.state}, and frozen: {cgroup.frozen()}")
    return broken


# -- I4: one copy -----------------------------------------------------------------------------


def i4_one_copy(root: Path) -> list[str]:
    """No instance has two inits; so it has one application, which only its init starts."""
    return [
        f"I4 {count} inits serve {uuid}"
        for uuid, count in Counter(inits(root).values()).items()
        if count > 1
    ]


# -- I5: legal states, legal edges ------------------------------------------------------------


def i5_states(rows: Sequence[Instance]) -> list[str]:
    """Nobody stays in a state that is only passed through."""
    return [f"I5 {row.name} is {row.state}" for row in rows if row.state not in STAY]


def i5_edges(events: Sequence[Event], *, state: str = "UNDEFINED", lost: int = 0) -> list[str]:
    """Each event of one instance leads on from the one before it, by an edge of the table.

    What is made up for writers that died may leap; so may *lost* others, where nobody was there
    to make it up.
    """
    broken = []
    for event in events:
        told = event.data.get("state")
        if told is None or told == state:
            continue
        if (State(state), State(told)) not in _EDGES and event.kind not in _REPLACED:
            if lost <= 0:
                broken.append(f"I5 {event.kind} leads from {state} to {told} (event {event.seq})")
            lost -= 1
        state = told
    return broken


# -- I6: others are not disturbed -------------------------------------------------------------

HEARTBEAT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"
_SILENCE_S = 10.0


class Heartbeat:
    """An instance that counts; `broken` looks at what it has counted since the last look."""

    def __init__(self, node: Node, uuid: str) -> None:
        self._node = node
        self._uuid = uuid
        self._last = 0
        self._identity = self._who()

    def _who(self) -> tuple[object, ...]:
        row = self._node.get(self._uuid)
        return row.state, row.pid, row.restarts

    def broken(self) -> list[str]:
        """I6: the same process, and no gap in what it counts."""
        now = self._who()
        if now != self._identity:
            return [f"I6 the heartbeat was {self._identity}, is {now}"]
        lines = list(self._node.logs(self._uuid, tail=3000))
        counted = [int(line.text) for line in lines]
        if not counted or counted != list(range(counted[0], counted[0] + len(counted))):
            return ["I6 a line of the heartbeat is missing"]
        if counted[0] > self._last + 1 or counted[-1] < self._last:
            return [f"I6 the heartbeat has lost what is between {self._last} and {counted[0]}"]
        times = [_seconds(line.time) for line in lines if int(line.text) >= self._last]
        self._last = counted[-1]
        longest = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
        return [f"I6 {longest:.1f} s of silence"] if longest > scale.seconds(_SILENCE_S) else []


def _seconds(time: str) -> float:
    # RFC 3339 with nanoseconds: more digits than datetime reads.
    from datetime import datetime

    return datetime.fromisoformat(f"{time[:26].rstrip('Z')}+00:00").timestamp()


def lines_lost(node: Node, uuid: str) -> list[str]:
    """Each application of an instance has counted from 1 without a gap, as the log has it."""
    expected = 1
    for text in log_text(node, uuid).split():
        if int(text) not in (expected, 1):
            return [f"I6 {uuid}: line {text} stands where {expected} should"]
        expected = int(text) + 1
    return []
