"""What two nodes say to each other while an instance moves, and how it is said.

Each message may be lost, come late, twice, or long after its migration: the epoch tells which
one it belongs to, and saying it again changes nothing. tests/model/migration.pml has the same
names and is searched for what must not happen.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from nativert.errors import Code, NativertError
from nativert.fdu.known import known
from nativert.store.paths import check_uuid

# A piece of the data, and what is said around it.
CHUNK_BYTES: Final = 256 << 10
MAX_BYTES: Final = 4 << 20


class Kind(enum.Enum):
    """Who says it, and what it means."""

    PREPARE = "prepare"  # source: get ready for this instance
    READY = "ready"  # destination: it is configured
    REFUSED = "refused"  # destination: this migration is over, here it never runs
    CHUNK = "chunk"  # source: a piece of the data
    STORED = "stored"  # destination: so many bytes are here
    FINISH = "finish"  # source: that was all, with its sum
    RECEIVED = "received"  # destination: it is on the disk; from now on the source decides
    COMMIT = "commit"  # source: it is yours, and never runs here again
    DONE = "done"  # destination: it runs
    RETURNED = "returned"  # destination: it cannot be started here, and never will be: take it back
    ABORT = "abort"  # source: this migration is over, it stays here
    INQUIRE = "inquire"  # destination: what has become of it?


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message; `sender` is a node's id, `body` JSON, `payload` bytes of the data."""

    kind: Kind
    instance: str
    epoch: int
    sender: str
    body: dict[str, Any] = {}
    payload: bytes = b""


# None: nothing can be said yet; ask again.
Answer = Callable[[Message], Message | None]


class Transport(Protocol):
    """The way to the other nodes; may be used by any thread."""

    def ask(self, peer: str, message: Message, *, timeout_s: float) -> Message:
        """Return what the node *peer* answers; NativertError NOT_FOUND, BUSY or TIMEOUT."""
        ...


def encode(message: Message) -> bytes:
    """Return *message* as it travels."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes) -> Message:
    """Return the message in *data*; NativertError(DESCRIPTOR) for anything else."""
    if len(data) > MAX_BYTES:
        raise NativertError("a message of a migration is too long", code=Code.DESCRIPTOR)
    try:
        message = msgspec.msgpack.decode(data, type=known(Message))
    except msgspec.DecodeError as e:
        raise NativertError(f"not a message of a migration: {e}", code=Code.DESCRIPTOR) from None
    check_uuid(message.instance)
    return message
