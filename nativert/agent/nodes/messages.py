"""What agents say to each other about instances and requests; migrations have words of their own.

The answer to a `Request` has several parts: `HEAD` with a `Head` in JSON, `DATA` with bytes of the
body, and `END`. Without `END` it was broken off. The answer to a `Talk` is what its WebSocket says:
`TEXT` and `DATA` messages, and `END`. Where the sender gives `Piece`s, `READY` comes first.
"""

from __future__ import annotations

from typing import Final

import msgspec

from nativert.errors import Code, NativertError

READY: Final = b"R"
HEAD: Final = b"H"
TEXT: Final = b"T"
DATA: Final = b"D"
END: Final = b"E"
# As many parts of one answer may be under way.
WINDOW: Final = 64
# As many bytes of a body are in one part at most.
CHUNK: Final = 65536


class _Question(msgspec.Struct, frozen=True, kw_only=True, tag=str.lower):
    pass


class About(_Question, frozen=True, kw_only=True):
    """Who are you? The answer is a `Summary`."""


class Find(_Question, frozen=True, kw_only=True):
    """Which instances of yours does *ref* name? The answer is a list of `Found`."""

    ref: str


class Holds(_Question, frozen=True, kw_only=True):
    """Which addresses does this instance have with you? The answer is a `Holding`."""

    instance: str


class Request(_Question, frozen=True, kw_only=True):
    """Carry out a request to your API, for the node *sender*; a body that is `given` follows."""

    id: str
    sender: str
    method: str
    target: str
    accept: str = ""
    body: bytes = b""
    given: bool = False


class Talk(_Question, frozen=True, kw_only=True):
    """Open a WebSocket of your API, for the node *sender*; its messages follow."""

    id: str
    sender: str
    target: str


class Piece(_Question, frozen=True, kw_only=True):
    """The next of a given body, or message of a WebSocket; they count from 1.

    The answer, as soon as there is room, is whether it was taken: not if nothing more is wanted.
    """

    id: str
    number: int
    data: bytes = b""
    text: bool = False
    last: bool = False


class Taken(_Question, frozen=True, kw_only=True):
    """The answer to request *id* is still wanted, and so many parts have been taken.

    The answer is whether the request is still served.
    """

    id: str
    parts: int


class Dropped(_Question, frozen=True, kw_only=True):
    """The answer to request *id* is not wanted any more."""

    id: str


Question = About | Find | Holds | Request | Talk | Piece | Taken | Dropped


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A node; `addresses` are the endpoints at which others reach it."""

    name: str
    addresses: tuple[str, ...]
    instances: int


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An instance; `exact` where not just a prefix names it.

    It `lands` as long as it is on its way to that node.
    """

    instance: str
    name: str
    exact: bool
    lands: bool


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """Where an instance is: here, with these addresses, or on the node `given`, as last seen.

    Neither: it was undefined here.
    """

    here: bool
    addresses: tuple[str, ...] = ()
    given: str = ""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer begins; `form` is its content type."""

    status: int
    form: str = ""


_questions = msgspec.json.Decoder(Question)


def decode(data: bytes) -> Question:
    """Return a question; NativertError USAGE for what is none."""
    try:
        question: Question = _questions.decode(data)
    except msgspec.DecodeError as e:
        raise NativertError(f"not a question of an agent: {e}", code=Code.USAGE) from None
    return question
