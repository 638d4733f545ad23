"""What init understands of a message, held against Python's json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_init import Driven

REFUSED = object()


@pytest.fixture(scope="module")
def parser() -> Iterator[Driven]:
    with Driven("drive_json") as one:
        yield one


def understood(parser: Driven, data: bytes) -> Any:
    answer = parser.ask(data.hex())
    return REFUSED if answer == "refused" else json.loads(answer)["value"]


class Pairs(tuple[tuple[str, Any], ...]):
    """An object with all that it was written with."""


def expected(data: bytes) -> Any:
    return _expected(json.loads(data, object_pairs_hook=Pairs))


def _expected(value: Any) -> Any:
    # Lists and objects by number, names as the kernel has them.
    if isinstance(value, Pairs):
        named: dict[str, Any] = {}
        for index, (key, inner) in enumerate(value):
            named |= {f"{index}k": _expected(key), f"{index}v": _expected(inner)}
        return named
    if isinstance(value, list):
        return {str(index): _expected(inner) for index, inner in enumerate(value)}
    if isinstance(value, str):
        try:
            name = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return "not a name"
        return "not a name" if b"\0" in name else name.decode("utf-8", "surrogateescape")
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(1 << 63) <= value < 1 << 63 else "a number"
    return "a number" if isinstance(value, float) else value


NAMES = st.text(max_size=20) | st.text('\udc80\udcff\ud800\udc00\0\x1f"\\é😀', max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | NAMES
    | st.floats(allow_nan=False, width=32).filter(lambda x: abs(x) < 1e30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_what_python_writes_is_understood(parser: Driven, value: Any, escaped: bool) -> None:
    try:
        data = json.dumps(value, ensure_ascii=escaped).encode()
    except UnicodeEncodeError:
        data = json.dumps(value).encode()
    assert understood(parser, data) == expected(data)


@given(
    st.binary(max_size=200)
    | st.text('{}[]",:\\\\u0dc8e+-.1 \tntrfals', max_size=60).map(str.encode)
)
def test_what_python_refuses_is_refused(parser: Driven, data: bytes) -> None:
    answer = understood(parser, data)
    if answer is REFUSED:
        return
    assert answer == expected(data)


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"[", b"]", b"{", b'{"a"}', b'{"a":}', b'{"a":1,}', b"[1,]", b"[1 2]", b"01",
        b"-", b"1.", b".5", b"1e", b"+1", b"NaN", b"Infinity", b"tru", b"nulls", b'"', b'"\\"',
        b'"\\u12"', b'"\\x"', b'"\n"', b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf1",
        b"1 1", b"{1:2}", b"'a'", b"[" * 40 + b"]" * 40, b"[" * 60000, b'{"a":' * 9999,
        b"\0", b"1\0",
    ],
    ids=lambda data: data[:12].hex(),
)  # fmt: skip
def test_what_is_no_message_is_refused(parser: Driven, data: bytes) -> None:
    assert understood(parser, data) is REFUSED


def test_large_messages_are_understood(parser: Driven) -> None:
    assert understood(parser, json.dumps(["x"] * 3000).encode())["2999"] == "x"
