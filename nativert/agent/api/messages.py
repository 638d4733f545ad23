"""What requests carry; beside `runtime.views` what answers carry. Unknown keys are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from nativert.runtime.views import Instance


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all have in common."""


class Defined(Message, frozen=True, kw_only=True):
    """A descriptor as docs/descriptor.md has it; `name` is the descriptor's unless given."""

    descriptor: dict[str, Any]
    name: str | None = None


class Redefined(Message, frozen=True, kw_only=True):
    """A descriptor of the same FDU, for the place of the one before."""

    descriptor: dict[str, Any]


class Environment(Message, frozen=True, kw_only=True):
    """Variables that are added to the descriptor's."""

    env: dict[str, str] = {}


class Scale(Message, frozen=True, kw_only=True):
    """Limits to change, null takes one off; all of them are changed, or none."""

    limits: dict[str, Any]
    force: bool = False


class Destination(Message, frozen=True, kw_only=True):
    """The id or name of another node."""

    node: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Landed(msgspec.Struct, frozen=True, kw_only=True):
    """Where an instance is now; `addresses` by interface."""

    instance: str
    name: str
    state: str
    node: str
    addresses: dict[str, str]


class KnownNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node that this one's agent has seen since it began; `own`: itself.

    `addresses` are the endpoints at which others reach it, `last_seen` seconds since the epoch.
    What it has not told is null.
    """

    uuid: str
    name: str | None
    own: bool
    alive: bool
    addresses: tuple[str, ...]
    instances: int | None
    last_seen: float


class Everywhere(msgspec.Struct, frozen=True, kw_only=True):
    """The instances of all nodes that are there; `silent` are the names of those not answering."""

    instances: list[Instance]
    silent: list[str]


class Kill(Message, frozen=True, kw_only=True):
    """The number of a signal; see signal(7)."""

    signal: Annotated[int, msgspec.Meta(ge=0, le=64)] = 9


class Wait(Message, frozen=True, kw_only=True):
    """How long to wait; null is for ever."""

    timeout_s: Annotated[float, msgspec.Meta(ge=0)] | None = None


class Gc(Message, frozen=True, kw_only=True):
    """`dry_run`: only tell what would be removed."""

    dry_run: bool = False


class Removal(Message, frozen=True, kw_only=True):
    """`force`: what runs is killed at once, and what is paused too, which else is refused."""

    force: bool = False


class Follow(Message, frozen=True, kw_only=True):
    """`follow` goes on until the application has ended; `tail` begins with the last lines."""

    follow: bool = False
    tail: Annotated[int, msgspec.Meta(ge=0)] | None = None
    format: Literal["json", "text"] = "json"


class Place(Message, frozen=True, kw_only=True):
    """A path below /data, absolute or relative to it."""

    path: Annotated[str, msgspec.Meta(max_length=4096)] = ""


class Placed(Message, frozen=True, kw_only=True):
    """A path below /data, absolute or relative to it; `mode` in octal digits as chmod(1) has it."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    mode: Annotated[str, msgspec.Meta(pattern="^0?[0-7]{3}$")] = "0644"


class StatsQuery(Message, frozen=True, kw_only=True):
    """`watch` repeats after so many seconds."""

    watch: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] | None = None


class EventsQuery(Message, frozen=True, kw_only=True):
    """Events with numbers above `after`, at most `limit`.

    Where there are none yet the answer may `wait` for so many seconds; `follow` goes on for ever.
    """

    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=10000)] = 1000
    wait: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0
    follow: bool = False


class Cursor(Message, frozen=True, kw_only=True):
    """The number of an event, 0 where there never was one."""

    seq: int


class State(Message, frozen=True, kw_only=True):
    """One edge of the state machine."""

    action: str
    sources: tuple[str, ...] = msgspec.field(name="from")
    through: tuple[str, ...]
    to: str


class Version(Message, frozen=True, kw_only=True):
    """What serves here."""

    nativert: str
    python: str
    kernel: str
    node: str
    pid: int


class Health(Message, frozen=True, kw_only=True):
    """The agent answers, and its threads do."""

    status: Literal["ok"] = "ok"


class Program(Message, frozen=True, kw_only=True):
    """The first message of an exec session: what to run, and on a terminal of which size."""

    argv: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    env: dict[str, str] = {}
    tty: bool = False
    rows: Annotated[int, msgspec.Meta(ge=1, le=9999)] = 24
    columns: Annotated[int, msgspec.Meta(ge=1, le=9999)] = 80


class Error(Message, frozen=True, kw_only=True):
    """What went wrong; `code` is a word of docs/cli.md, `hint` how to mend it."""

    code: str
    message: str
    hint: str
    details: dict[str, Any] | None = None


class Refusal(Message, frozen=True, kw_only=True):
    """The body of every answer that is not a success."""

    error: Error
