"""Two nodes that move a counter, each served by a process that may die, stop or be cut off.

The application counts on in /data and writes each number to a file that both nodes show to it.
It holds a lock on that file: a second copy that ran at the same time would be seen by that, and
a number that came twice or not at all by the file.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import scale
from migration_cases import Case
from movers import Served, Wire, id_of
from nodes import make_descriptor

from nativert.errors import NativertError
from nativert.runtime import failpoints
from nativert.runtime.migration.attending import Attendant
from nativert.runtime.migration.destination import Destination
from nativert.runtime.migration.messages import Message
from nativert.runtime.migration.source import Mover, Patience
from nativert.runtime.node import Node
from nativert.store.durable import Store
from nativert.store.paths import Paths

COUNTER = """
import fcntl, os, signal, time
ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(1))
log = os.open("/witness/numbers", os.O_WRONLY | os.O_APPEND)
try:
    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    os.write(log, b"two copies\\n")
n = int(open("/data/n").read()) if os.path.exists("/data/n") else 0
while not ends:
    n += 1
    with open("/data/n.new", "w") as file:
        file.write(str(n))
    os.rename("/data/n.new", "/data/n")
    os.write(log, b"%d\\n" % n)
    time.sleep(0.02)
"""
QUICK = Patience(
    answer_s=scale.seconds(0.6),
    prepare_s=scale.seconds(10),
    silence_s=scale.seconds(1),
    commit_s=scale.seconds(0.8),
)
SETTLED_S = scale.seconds(25)


class Field:
    """Two nodes and what their applications have written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.roots = (directory / "a", directory / "b")
        self.witness = directory / "witness"
        self.witness.mkdir(mode=0o755)
        for root in self.roots:
            with Node(root) as node:
                node.list()
        self.ids = tuple(id_of(root) for root in self.roots)

    def descriptor(self) -> object:
        mounts = [{"source": str(self.witness), "target": "/witness", "read_only": False}]
        return make_descriptor(name="counter", python=COUNTER, native={"mounts": mounts})

    def try_case(self, case: Case) -> str:
        """Carry *case* out; return where the instance is after it, "source" or "target"."""
        numbers = self.witness / "numbers"
        numbers.write_bytes(b"")
        numbers.chmod(0o666)
        with Node(self.roots[0]) as node:
            uuid = node.define(self.descriptor()).instance  # type: ignore[arg-type]
            node.configure(uuid)
            node.run(uuid)
        _until(lambda: numbers.stat().st_size > 0, "the first number")
        sides = [
            Side(self, 0, case.source, uuid, case),
            Side(self, 1, case.target, "", case),
        ]
        try:
            where = self._settle(uuid, sides, case)
        finally:
            for side in sides:
                side.end()
        seen = len(numbers.read_text().splitlines())
        _until(lambda: len(numbers.read_text().splitlines()) > seen, "another number")
        with Node(self.roots[where]) as node:
            assert node.get(uuid).state == "RUNNING"
            node.remove(uuid, force=True)
        assert self.rows() == [[], []], "something is left"
        lines = numbers.read_text().splitlines()
        assert lines == [str(n + 1) for n in range(len(lines))], f"numbers: {lines}"
        return ("source", "target")[where]

    def rows(self) -> list[list[tuple[str, bool, str]]]:
        found = []
        for root in self.roots:
            with Store(Paths(root)) as store:
                rows = store.rows()
                found.append([(row.uuid, row.moving is None, row.desired) for row in rows])
        return found

    def _settle(self, uuid: str, sides: list[Side], case: Case) -> int:
        deadline = time.monotonic() + SETTLED_S
        home = [(uuid, True, "RUNNING")]
        while True:
            for side in sides:
                side.tend(case.back_s)
            rows = self.rows()
            # What is asked for once must have been tried before it can be over.
            if sides[0].tried() and rows in ([home, []], [[], home]):
                return rows.index(home)
            assert time.monotonic() < deadline, f"not settled: {rows}"
            time.sleep(0.05)


class Side:
    """The process that serves one node; whatever ends it, another one takes its place."""

    def __init__(self, field: Field, number: int, points: str, moves: str, case: Case) -> None:
        self._field, self._number, self._case = field, number, case
        self._tried = field.directory / f"tried-{number}"
        self._tried.unlink(missing_ok=True)
        self._moves = moves
        self._since: float | None = None
        self._stopped = False
        self._pid = self._fork(points, moves)

    def tried(self) -> bool:
        """Whether the migration that was asked for has come to some end."""
        return not self._moves or self._tried.exists()

    def tend(self, back_s: float) -> None:
        """Let a stopped process go on, and put another one in the place of a dead one."""
        now = time.monotonic()
        if self._since is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG | os.WUNTRACED)
            if not pid:
                return
            self._since = now
            self._stopped = os.WIFSTOPPED(status)
            if not self._stopped:
                assert os.WIFSIGNALED(status), f"ended by itself: {status}"
        if now < self._since + back_s:
            return
        self._since = None
        if self._stopped:
            os.kill(self._pid, signal.SIGCONT)
        else:
            self._tried.touch()
            self._pid = self._fork("", "")

    def end(self) -> None:
        if self._since is not None and not self._stopped:
            return
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _fork(self, points: str, moves: str) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                self._serve(points, moves)
            finally:
                os._exit(70)
        return pid

    def _serve(self, points: str, moves: str) -> None:
        field, here, there = self._field, self._number, 1 - self._number
        node = Node(field.roots[here])
        wire = Wire(*field.roots)
        wire.fault = Fault(self._case) if self._case.wire and here == 0 else None
        destination = Destination(node)
        Served(node, destination)
        failpoints.arm(points)
        if moves:
            try:
                Mover(node, wire, patience=QUICK).migrate(moves, field.ids[there])
            except Exception:
                pass  # What it says is another test's; here it counts what has become of it.
            if isinstance(wire.fault, Fault):
                wire.fault.afterwards()
            self._tried.touch()
        attendant = Attendant(node, wire, destination, patience=QUICK)
        while True:
            attendant.round()
            time.sleep(0.1)


class Fault:
    """What the wire does to the messages of one kind."""

    def __init__(self, case: Case) -> None:
        kind, self._what = case.wire.split()
        self._kind = kind
        self._back_s = case.back_s
        self._met = 0
        self._cut_at: float | None = None
        self._sent: list[Message] = []
        self._deliver: Callable[[Message], Message] | None = None

    def __call__(self, message: Message, deliver: Callable[[Message], Message]) -> Message:
        from nativert.errors import Code

        lost = NativertError("lost on the way", code=Code.TIMEOUT)
        self._deliver = deliver
        if message.kind.name == self._kind:
            self._met += 1
            if self._what == "cut" and self._cut_at is None:
                self._cut_at = time.monotonic()
        if self._cut_at is not None and time.monotonic() < self._cut_at + self._back_s:
            raise lost
        if message.kind.name == self._kind:
            if self._met <= {"lose": 1, "lose3": 3}.get(self._what, 0):
                raise lost
            if self._met == 1 and self._what == "late":
                time.sleep(0.4)
            if self._met == 1 and self._what == "replay":
                for old in self._sent:
                    _ignoring(deliver, old)
        answer = deliver(message)
        self._sent.append(message)
        if message.kind.name == self._kind:
            if self._what == "twice":
                answer = deliver(message)
            if self._met <= {"deaf": 1, "deaf3": 3}.get(self._what, 0):
                raise lost
        return answer

    def afterwards(self) -> None:
        """Deliver all that was ever said once more, in the wrong order."""
        if self._what == "after" and self._deliver is not None:
            for old in reversed(self._sent):
                _ignoring(self._deliver, old)


def _ignoring(deliver: Callable[[Message], Message], message: Message) -> None:
    try:
        deliver(message)
    except NativertError:
        pass


def _until(ask: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SETTLED_S
    while not ask():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.01)
