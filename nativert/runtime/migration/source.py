"""migrate_fdu at its source: until the commit it can be taken back, after it never.

The instance's lock is held all the while. Each message is said again until its answer is here
or the time for it is up; before the commit the application then goes on here, after it the
destination is told as soon as it can be reached.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from nativert.errors import Code, NativertError
from nativert.fdu.states import Event, Operation, State, through
from nativert.runtime import edges
from nativert.runtime import run as runs
from nativert.runtime.context import Context
from nativert.runtime.failpoints import failpoint
from nativert.runtime.migration import live, parcel, preflight, settling, telling
from nativert.runtime.migration.messages import Kind, Message, Transport
from nativert.runtime.observe import Observed, look_here
from nativert.runtime.protocols import Progress
from nativert.store import moves
from nativert.store.durable import Row
from nativert.store.moves import Fence, Move, Outcome, Phase

if TYPE_CHECKING:
    from nativert.runtime.node import Node

_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what may take; in seconds."""

    answer_s: float = 10.0  # one answer
    prepare_s: float = 600.0  # the destination fetches the image and configures
    silence_s: float = 30.0  # without any answer, before the commit
    commit_s: float = 60.0  # until the destination runs it; then it is told later


class Mover:
    """Moves instances of one node to others."""

    def __init__(
        self, node: Node, transport: Transport, *, patience: Patience | None = None
    ) -> None:
        self._node = node
        self._context: Context = node.context
        self._transport = transport
        self._patience = patience or Patience()

    def migrate(self, ref: str, peer: str, *, progress: Progress | None = None) -> dict[str, Any]:
        """Move an instance to the node with the id *peer*; return what that says of it.

        NativertError MIGRATE where it stays here and runs, TIMEOUT where the destination has it
        but has not said yet that it runs.
        """
        told: dict[str, Any] = {}

        def act(seen: Observed) -> Observed:
            self._allow(seen.row, peer)
            leaving = _Leaving(self, self._begin(seen.row, peer), progress)
            after, said = leaving.carry_out()
            told.update(said)
            return after

        self._node.operate(ref, Operation.MIGRATE, act)
        return told

    def deliver(self, uuid: str) -> None:
        """Tell the destination of a move that is committed; as often as one likes."""

        def act(seen: Observed) -> Observed:
            move = moves.decode(seen.row.moving)
            if move is None or move.phase is not Phase.COMMITTED:
                return seen
            return _Leaving(self, seen.row, None).hand_over()[0]

        self._node.operate(uuid, None, act, quiet=True)

    def _allow(self, row: Row, peer: str) -> None:
        if peer == self._context.identity.id:
            raise NativertError(
                f"{row.name}: cannot migrate: it is on that node", code=Code.MIGRATE
            )

    def _begin(self, row: Row, peer: str) -> Row:
        fence = self._context.store.fence(row.uuid)
        epoch = 1 if fence is None else fence.epoch + 1
        state = through(State.RUNNING, Operation.MIGRATE)[0]
        row = self._context.store.update(
            row.uuid,
            moving=moves.encode(Move(epoch=epoch, phase=Phase.PREPARING, peer=peer)),
            fence=Fence(epoch=epoch, outcome=Outcome.OPEN, peer=peer),
            event=("migrating", edges.encode({"state": state.value, "peer": peer})),
            told=state.value,
        )
        self._node.report(row, state)
        return row


class _Leaving:
    """One migration at its source."""

    def __init__(self, mover: Mover, row: Row, progress: Progress | None) -> None:
        self._node = mover._node  # noqa: SLF001 (one thing in two parts)
        self._context = mover._context  # noqa: SLF001
        self._transport = mover._transport  # noqa: SLF001
        self._patience = mover._patience  # noqa: SLF001
        self._row = row
        self._move = settling.move_of(row)
        self._progress = progress
        self._directory = self._context.paths.instance_lib(row.uuid)

    def carry_out(self) -> tuple[Observed, dict[str, Any]]:
        """Do all of it; what it says where it stays here is a NativertError."""
        try:
            failpoint("migrate.begun")
            self._prepare()
            self._take_off()
            self._send()
            self._row = settling.enter(self._context, self._row, Phase.COMMITTED)
        except BaseException as e:
            if not self._stay(str(e)):
                raise  # Whether the commit is on the disk was not sure, and it is.
            if isinstance(e, (NativertError, OSError)):
                why = e.message if isinstance(e, NativertError) else str(e)
                raise NativertError(
                    f"{self._row.name}: stays on this node: {why}",
                    code=e.code if isinstance(e, NativertError) else Code.MIGRATE,
                    hint=e.hint if isinstance(e, NativertError) else "",
                ) from e
            raise
        failpoint("migrate.committed")
        return self.hand_over()

    def hand_over(self) -> tuple[Observed, dict[str, Any]]:
        """Have the destination start it; where that cannot, it runs here again."""
        patience = self._patience.commit_s
        final = {Kind.DONE, Kind.RETURNED}
        try:
            answer = self._until(self._say(Kind.COMMIT), final, patience, patience)
        except NativertError as e:
            raise NativertError(
                f"{self._row.name}: belongs to node {self._move.peer} now, which does not say"
                f" that it runs: {e.message}",
                code=e.code,
                hint="it is told as soon as it can be reached",
            ) from e
        failpoint("migrate.done")
        if answer.kind is Kind.DONE:
            told = answer.body.get("addresses")
            taken = [str(each) for each in told.values()] if isinstance(told, dict) else None
            gone = settling.forget(self._context, self._row, Outcome.GIVEN, taken=taken)
            return gone, answer.body
        reason = str(answer.body.get("reason", "no reason given"))
        self._row = settling.enter(self._context, self._row, Phase.ABORTING)
        settling.take_back(self._context, self._row, reason)
        raise NativertError(
            f"{self._row.name}: stays on this node: it cannot be started there: {reason}",
            code=Code.MIGRATE,
        )

    def _prepare(self) -> None:
        row = self._row
        limits: Any = None if row.limits is None else msgspec.json.decode(row.limits)
        body = {
            "name": row.name,
            "fdu": row.fdu,
            "descriptor": row.descriptor,
            "limits": limits,
            "env": None if row.env is None else msgspec.json.decode(row.env),
            "addresses": {one.name: one.address for one in row.interfaces},
            "bytes": parcel.size(self._directory),
        }
        if live.wanted(row):
            here = look_here(self._context, row)
            body["live"] = msgspec.to_builtins(preflight.offer(self._context, here))
            body["bytes"] += self._context.cgroup(row.uuid).usage().memory_bytes or 0
        self._until(
            self._say(Kind.PREPARE, body),
            {Kind.READY},
            self._patience.prepare_s,
            self._patience.silence_s,
        )
        failpoint("migrate.prepared")

    def _take_off(self) -> None:
        context = self._context
        here = look_here(context, self._row)
        if here.event is not None or here.state is not State.RUNNING:
            gone = "it has ended" if here.event is Event.APPLICATION_ENDED else "it does not run"
            raise NativertError(f"{gone} before it was moved", code=Code.MIGRATE)
        assert here.facts is not None
        with telling.told(context, self._row, here.facts):
            self._row = settling.enter(context, self._row, Phase.TAKE_OFF)
            self._node.report(self._row, State.TAKE_OFF)
            failpoint("migrate.stopping")
            here = look_here(context, self._row)
            if live.wanted(self._row):
                live.dump(context, here)
            else:
                self._stop(here)
        failpoint("migrate.stopped")

    def _stop(self, here: Observed) -> None:
        asked = telling.asked(self._row)
        instead = None
        if asked is not None and asked.signal_number is not None:
            instead = (asked.signal_number, asked.timeout_s)
        self._row = runs.stop(self._context, here, why="migrate", instead=instead).row

    def _send(self) -> None:
        silence_s = self._patience.silence_s
        total = parcel.size(self._directory)

        def send(offset: int, piece: bytes) -> None:
            chunk = self._say(Kind.CHUNK, {"offset": offset}, piece)
            self._until(chunk, {Kind.STORED}, silence_s, silence_s, offset + len(piece))
            if self._progress is not None:
                self._progress(min(offset + len(piece), total), total)

        pieces = parcel.Pieces(send)
        told = parcel.pack(self._directory, pieces)
        failpoint("migrate.sent")
        finish = self._say(
            Kind.FINISH, {"bytes": pieces.sent, "sum": told, "id_range": self._row.id_range}
        )
        self._until(finish, {Kind.RECEIVED}, self._patience.prepare_s, silence_s)
        failpoint("migrate.received")

    def _stay(self, reason: str) -> bool:
        context = self._context
        row = context.store.get(self._row.uuid)
        move = moves.decode(row.moving)
        if move is not None and move.phase is Phase.COMMITTED:
            return False
        if move is not None:
            self._row = settling.take_back(context, row, reason).row
        try:
            self._transport.ask(
                self._move.peer, self._say(Kind.ABORT), timeout_s=self._patience.answer_s
            )
        except NativertError:
            pass  # It asks when it hears nothing.
        return True

    def _say(self, kind: Kind, body: dict[str, Any] | None = None, payload: bytes = b"") -> Message:
        return Message(
            kind=kind,
            instance=self._row.uuid,
            epoch=self._move.epoch,
            sender=self._context.identity.id,
            body=body or {},
            payload=payload,
        )

    def _until(
        self,
        message: Message,
        wanted: Collection[Kind],
        patience_s: float,
        silence_s: float,
        bytes_here: int | None = None,
    ) -> Message:
        """Say *message* until one of *wanted* answers it; NativertError when the time is up."""
        began = heard = time.monotonic()
        while True:
            error: NativertError | None = None
            try:
                answer = self._transport.ask(
                    self._move.peer, message, timeout_s=self._patience.answer_s
                )
            except NativertError as e:
                error = e
                heard = time.monotonic() if e.code is Code.BUSY else heard
            else:
                heard = time.monotonic()
                if self._answers(answer, wanted, bytes_here):
                    return answer
            now = time.monotonic()
            if now - began > patience_s or now - heard > silence_s:
                why = "" if error is None else f": {error.message}"
                raise NativertError(
                    f"no {' or '.join(sorted(kind.value for kind in wanted))} from node"
                    f" {self._move.peer} within {now - began:.0f} s{why}",
                    code=Code.TIMEOUT,
                    hint="see whether the node and its agent are there",
                )
            time.sleep(_AGAIN_S)

    def _answers(self, answer: Message, wanted: Collection[Kind], bytes_here: int | None) -> bool:
        ours = (answer.instance, answer.epoch) == (self._row.uuid, self._move.epoch)
        if not ours or answer.sender != self._move.peer:
            return False  # Of another migration, or of nobody that was asked.
        if answer.kind is Kind.REFUSED and Kind.DONE not in wanted:
            reason = str(answer.body.get("reason", "no reason given"))
            raise NativertError(f"node {self._move.peer} refuses it: {reason}", code=Code.MIGRATE)
        if answer.kind not in wanted:
            return False
        return bytes_here is None or answer.body.get("bytes") == bytes_here


def inquired(context: Context, question: Message) -> Message | None:
    """Return what has become of a migration that was begun here; None while it goes on."""

    def say(kind: Kind) -> Message:
        return Message(
            kind=kind,
            instance=question.instance,
            epoch=question.epoch,
            sender=context.identity.id,
        )

    uuid = question.instance
    lock = context.lock(uuid)
    if not lock.try_acquire():
        return None
    gone = False
    try:
        row = next((row for row in context.store.rows() if row.uuid == uuid), None)
        gone = row is None
        move = None if row is None else moves.decode(row.moving)
        if row is not None and move is not None and move.leaves:
            if move.phase is Phase.COMMITTED and move.epoch == question.epoch:
                return say(Kind.COMMIT)
            # Nobody holds its lock: whoever moved it is dead.
            settling.settle_moving(context, row)
        fence = context.store.fence(uuid)
        if fence is None or fence.epoch < question.epoch:
            return None
        if fence.epoch == question.epoch and fence.peer != question.sender:
            return None
        if fence.epoch == question.epoch and fence.outcome is Outcome.GIVEN:
            return say(Kind.COMMIT)
        return say(Kind.ABORT)
    finally:
        if gone:
            lock.forget()
        else:
            lock.release()
