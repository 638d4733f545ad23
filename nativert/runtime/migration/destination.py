"""migrate_fdu at its destination: prepared, filled, and started on the source's word.

Every message is answered from what the store says, so that any process of this node may answer
the next one, and one that comes twice changes nothing.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nativert.errors import Code, NativertError, UnknownInstanceError
from nativert.fdu import descriptor as descriptors
from nativert.fdu import record as records
from nativert.fdu.states import State
from nativert.runtime import edges, virtual_networks
from nativert.runtime.context import Context
from nativert.runtime.failpoints import failpoint
from nativert.runtime.migration import preflight, settling, source
from nativert.runtime.migration.messages import Kind, Message
from nativert.runtime.migration.parcel import Incoming
from nativert.runtime.observe import Observed, observe, settle_here
from nativert.runtime.protocols import Reaching
from nativert.store import moves
from nativert.store.durable import Row
from nativert.store.moves import Fence, Move, Outcome, Phase

if TYPE_CHECKING:
    from nativert.runtime.node import Node
    from nativert.store.locks import InstanceLock

_SCRIPT_S: Final = 300.0
_ROOM: Final = 2  # times the data: as they came, and unpacked


class _Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What the source says of an instance."""

    name: str
    fdu: str
    descriptor: str
    limits: dict[str, Any] | None = None
    env: dict[str, str] | None = None
    addresses: dict[str, str] = {}
    bytes: int = 0
    live: preflight.Live | None = None


class Destination:
    """Answers for one node; may be called by any thread.

    *arriving* is called when an instance is this node's from now on, before it is started.
    """

    def __init__(self, node: Node, arriving: Callable[[], None] = lambda: None) -> None:
        self._node = node
        self._arriving = arriving
        self._context: Context = node.context
        self._heard: dict[str, float] = {}

    def answer(self, message: Message) -> Message | None:
        """Return the answer to *message*; None where nothing can be said yet."""
        if message.kind is Kind.INQUIRE:
            return source.inquired(self._context, message)
        lock = self._context.lock(message.instance)
        if not lock.try_acquire():
            return None  # The message before it, or its repetition, is at work.
        try:
            self.heard(message.instance)
            return self._answer(message)
        finally:
            self._leave(message.instance, lock)

    def heard(self, uuid: str) -> None:
        """Note that the source of *uuid* is there."""
        self._heard[uuid] = time.monotonic()

    def silent_s(self, uuid: str) -> float:
        """Return the seconds since the source was heard of, or since this was asked first."""
        now = time.monotonic()
        return now - self._heard.setdefault(uuid, now)

    def give_up(self, uuid: str) -> None:
        """Abandon what was prepared for a source that is silent for too long.

        What was confirmed stays: it is the source's to decide, however long that takes.
        """
        lock = self._context.lock(uuid)
        if not lock.try_acquire():
            return
        try:
            row = self._row(uuid)
            move = None if row is None else moves.decode(row.moving)
            if row is not None and move is not None and move.phase is Phase.LANDING:
                settling.abandon(self._context, row, "its source was silent for too long")
                self._node.report(row, State.UNDEFINED)
        finally:
            self._leave(uuid, lock)

    def _leave(self, uuid: str, lock: InstanceLock) -> None:
        if self._row(uuid) is None:
            self._heard.pop(uuid, None)
            lock.forget()
        else:
            lock.release()

    def _row(self, uuid: str) -> Row | None:
        try:
            return self._context.store.get(uuid)
        except UnknownInstanceError:
            return None

    def _answer(self, message: Message) -> Message | None:
        row = self._row(message.instance)
        move = None if row is None else moves.decode(row.moving)
        if row is not None and move is not None:
            row = self._settled(row)
            move = None if row is None else moves.decode(row.moving)
        if message.kind is Kind.PREPARE:
            return self._prepare(message, row, move)
        if row is not None and move is not None and not move.leaves:
            if (move.epoch, move.peer) == (message.epoch, message.sender):
                return self._landing(message, row, move)
            if message.kind is Kind.ABORT and move.epoch < message.epoch:
                settling.abandon(self._context, row, "it was moved anew")
                row = None
        if message.kind is Kind.ABORT and row is None:
            self._forbid(message)
        return self._over(message)

    def _settled(self, row: Row) -> Row | None:
        """Return the row after what a dead process had left of its move."""
        after = settling.settle_moving(self._context, row)
        return None if after.state is State.UNDEFINED else after.row

    def _landing(self, message: Message, row: Row, move: Move) -> Message | None:
        if message.kind is Kind.ABORT:
            if move.phase is Phase.STARTING:
                return None
            settling.abandon(self._context, row, "its source keeps it")
            return self._say(message, Kind.REFUSED)
        if message.kind is Kind.COMMIT:
            return self._commit(message, row, move)
        if message.kind is Kind.CHUNK:
            return self._chunk(message, row, move)
        if message.kind is Kind.FINISH:
            return self._finish(message, row, move)
        return None

    def _over(self, message: Message) -> Message | None:
        """Answer for a migration that this node has nothing of, or nothing any more."""
        fence = self._context.store.fence(message.instance)
        if fence is None or fence.epoch < message.epoch:
            # Its store was lost: nothing is here, and nothing may begin in the middle.
            return None if message.kind is Kind.COMMIT else self._say(message, Kind.REFUSED)
        if fence.epoch > message.epoch:
            kind = Kind.DONE if message.kind is Kind.COMMIT else Kind.REFUSED
            return self._say(message, kind, {"reason": "a newer migration has begun"})
        if fence.peer != message.sender:
            return None
        if fence.outcome is Outcome.LANDED:
            return self._say(message, Kind.DONE, self._told(self._row(message.instance)))
        if fence.outcome is Outcome.GIVEN_BACK:
            return self._say(message, Kind.RETURNED, {"reason": "it could not be started"})
        return self._say(message, Kind.REFUSED, {"reason": "it is over"})

    def _prepare(self, message: Message, row: Row | None, move: Move | None) -> Message | None:
        context = self._context
        fence = context.store.fence(message.instance)
        if fence is not None and message.epoch < fence.epoch:
            return self._over(message)
        if row is not None and move is not None and not move.leaves:
            if move.epoch == message.epoch:
                if observe(context, row).state is not State.LANDING:
                    return None
                return self._say(message, Kind.READY, self._told(row))
            if move.phase is Phase.STARTING:
                return None
            # Whoever has a newer epoch to give away has the instance.
            settling.abandon(context, row, "it was moved anew")
            row = None
        elif row is not None and move is not None and move.phase is Phase.COMMITTED:
            if message.epoch <= move.epoch:
                return None
            settling.forget(context, row, Outcome.GIVEN)
            row = None
        if row is not None:
            return self._say(message, Kind.REFUSED, {"reason": "the instance is there already"})
        if fence is not None and fence.epoch == message.epoch:
            return self._over(message)
        try:
            return self._say(message, Kind.READY, self._told(self._define(message)))
        except (NativertError, OSError) as e:
            row = self._row(message.instance)
            if row is None:
                self._forbid(message)
            else:
                settling.abandon(context, row, str(e))
            return self._say(message, Kind.REFUSED, {"reason": str(e)})

    def _define(self, message: Message) -> Row:
        from nativert.runtime import admission
        from nativert.runtime.configure import configure

        context = self._context
        try:
            offer = msgspec.convert(message.body, _Offer)
        except msgspec.ValidationError as e:
            raise NativertError(f"not an offer: {e}", code=Code.DESCRIPTOR) from None
        descriptor = descriptors.decode(offer.descriptor.encode(), source=offer.name)
        if descriptor.attended and not self._node.attended:
            raise NativertError(
                f"{offer.name}: restart, health and depends_on need an agent here",
                code=Code.NO_AGENT,
            )
        admission.check_machine(descriptor.computation_requirements)
        free = context.os.free_bytes(context.paths.lib)
        if offer.bytes * _ROOM > free:
            raise NativertError(
                f"{offer.name}: {offer.bytes} bytes of data need twice as much room, and"
                f" {free} bytes are free",
                code=Code.REQUIREMENTS,
            )
        move = Move(epoch=message.epoch, phase=Phase.LANDING, peer=message.sender)
        told = State.MIGRATING.value
        networks = virtual_networks.subnets(context, descriptor)
        row = context.store.add(
            uuid=message.instance,
            name=offer.name,
            fdu=offer.fdu,
            descriptor=offer.descriptor,
            record=records.encode(
                records.new_record(descriptor, message.instance, offer.fdu)
            ).decode(),
            desired=State.DEFINED.value,
            subnet=context.identity.subnet,
            blocks=context.identity.blocks,
            interfaces=[interface.name for interface in descriptor.interfaces],
            networks=networks,
            addresses=self._allowed(offer.addresses, networks),
            limits=None if offer.limits is None else edges.encode(offer.limits),
            more_blocks=context.more_blocks,
            event=("migrating", edges.encode({"state": told, "peer": message.sender})),
            moving=moves.encode(move),
            fence=settling.fence(move, Outcome.OPEN),
        )
        if offer.env:
            row = context.store.update(row.uuid, env=msgspec.json.encode(offer.env).decode())
        failpoint("land.defined")
        self._node.report(row, State.MIGRATING)
        fresh = Observed(row, State.DEFINED, None, None)
        # One of a few threads is at work, and the source does not wait for ever.
        here = configure(context, fresh, script_s=_SCRIPT_S)
        row = here.row
        failpoint("land.configured")
        if offer.live is not None:
            preflight.accept(context, here, offer.live)
        data = edges.encode({"state": State.LANDING.value, "peer": message.sender})
        context.store.note(row.uuid, "landing", data, told=State.LANDING.value)
        # An agent of fog05 takes questions to the instance from CONFIGURE on.
        self._node.report(row, State.CONFIGURED)
        self._node.report(row, State.LANDING)
        return row

    def _allowed(
        self, addresses: dict[str, str], networks: dict[str, IPv4Network]
    ) -> dict[str, str]:
        """Return those that an instance may have here: ours, and what other nodes send here.

        On a virtual network, by interface in *networks*, those of its subnet.
        """
        network, own = self._context.network, self._context.identity.subnet
        allowed = {}
        for name, address in addresses.items():
            try:
                ours = IPv4Address(address) in networks.get(name, own)
            except ValueError as e:
                raise NativertError(f"not an offer: {e}", code=Code.DESCRIPTOR) from None
            if not ours and name not in networks and isinstance(network, Reaching):
                ours = network.reaches(address)
            if ours:
                allowed[name] = address
        return allowed

    def _chunk(self, message: Message, row: Row, move: Move) -> Message | None:
        offset = message.body.get("offset")
        if move.phase is not Phase.LANDING or not isinstance(offset, int):
            return None
        with Incoming(self._context.paths.instance_lib(row.uuid)) as incoming:
            here = incoming.add(offset, message.payload)
        failpoint("land.stored")
        return self._say(message, Kind.STORED, {"bytes": here})

    def _finish(self, message: Message, row: Row, move: Move) -> Message | None:
        context = self._context
        if move.phase is Phase.LANDING:
            directory = context.paths.instance_lib(row.uuid)
            length, told = message.body.get("bytes"), message.body.get("sum")
            theirs = message.body.get("id_range")
            if not isinstance(length, int) or not isinstance(theirs, int):
                return None
            try:
                with Incoming(directory) as incoming:
                    incoming.check(length, str(told))
                    # What the script has left may write where the data are put.
                    with context.init(row.uuid) as init:
                        init.call({"verb": "signal", "signal": signal.SIGKILL, "all": True})
                    incoming.unpack(context.os, row.id_range, theirs)
                    failpoint("land.unpacked")
                    row = settling.enter(context, row, Phase.HELD)
                    failpoint("land.held")
                    incoming.remove()
            except (NativertError, OSError) as e:
                if settling.move_of(context.store.get(row.uuid)).phase is Phase.HELD:
                    return None
                settling.abandon(context, row, str(e))
                return self._say(message, Kind.REFUSED, {"reason": str(e)})
        return self._say(message, Kind.RECEIVED)

    def _commit(self, message: Message, row: Row, move: Move) -> Message | None:
        if move.phase is Phase.LANDING:
            return None
        if move.phase is Phase.HELD:
            row = settling.enter(self._context, row, Phase.STARTING)
            self._arriving()
            failpoint("land.starting")
        try:
            after = settling.start(self._context, row)
        except settling.NotStartedError as e:
            self._node.report(row, State.UNDEFINED)
            return self._say(message, Kind.RETURNED, {"reason": e.message})
        self._node.report(after.row, after.state)
        return self._say(message, Kind.DONE, self._told(after.row))

    def _forbid(self, message: Message) -> None:
        fence = self._context.store.fence(message.instance)
        if fence is None or fence.epoch < message.epoch:
            over = Fence(epoch=message.epoch, outcome=Outcome.ABANDONED, peer=message.sender)
            self._context.store.forbid(message.instance, over)

    def _told(self, row: Row | None) -> dict[str, Any]:
        if row is None:
            return {}
        addresses = {interface.name: interface.address for interface in row.interfaces}
        state = settle_here(self._context, row).state if row.moving is None else None
        told = {
            "instance": row.uuid,
            "name": row.name,
            "node": self._context.name,
            "addresses": addresses,
        }
        return told if state is None else told | {"state": state.value}

    def _say(self, asked: Message, kind: Kind, body: dict[str, Any] | None = None) -> Message:
        return Message(
            kind=kind,
            instance=asked.instance,
            epoch=asked.epoch,
            sender=self._context.identity.id,
            body=body or {},
        )
