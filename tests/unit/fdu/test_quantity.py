from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import DescriptorError
from nativert.fdu.quantity import (
    parse_cpuset,
    parse_duration,
    parse_env,
    parse_signal,
    parse_size,
    show,
)

PARSERS = [parse_size, parse_duration, parse_cpuset, parse_signal]


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        ("0", 0),
        ("1024", 1024),
        ("12B", 12),
        ("1K", 1 << 10),
        ("1k", 1 << 10),
        ("64M", 64 << 20),
        ("64Mi", 64 << 20),
        ("64MiB", 64 << 20),
        ("2g", 2 << 30),
        ("1T", 1 << 40),
        ("1.5G", 3 << 29),
        ("0.1K", 102),
        (2**63 - 1, 2**63 - 1),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_size(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize(
    "value",
    [
        -1, 2**63, "9223372036854775808", "9999999T", "", " ", "M", "-1", "+1", "1 M", "1M\n",
        "64MB", "1KB", "1.5", "1.5B", "1.", ".5M", "1e3", "0x10", "1_000", "64P", "inf", "nan",
        "\u0661", True, None, 1.5, [1],
    ],
)  # fmt: skip
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(DescriptorError) as caught:
        parse_size(value, "native.memory.max")
    assert caught.value.field == "native.memory.max"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("10", 10.0),
        ("0.25", 0.25),
        ("500ms", 0.5),
        ("10s", 10.0),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        ("1d", 86400.0),
        ("1m500ms", 60.5),
    ],
)
def test_duration(value: object, seconds: float) -> None:
    assert parse_duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        -1, "", "s", "-1s", "1 s", "1s ", "1s\n", "10S", "1m30", "1w", "1e9", "400d", "1..5s",
        float("nan"), float("inf"), True, None, [],
    ],
)  # fmt: skip
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(DescriptorError) as caught:
        parse_duration(value, "grace")
    assert caught.value.field == "grace"


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0", {0}), ("0-3,5", {0, 1, 2, 3, 5}), ("7,7,6-7", {6, 7}), ("8191", {8191})],
)
def test_cpuset(text: str, cpus: set[int]) -> None:
    assert parse_cpuset(text) == cpus


@pytest.mark.parametrize(
    "value", ["", ",", "0,", "3-1", "-1", "1-", "8192", "0-9999", "a", "0 1", "0\n", "0x1", 0, None]
)
def test_what_is_no_cpuset(value: object) -> None:
    with pytest.raises(DescriptorError):
        parse_cpuset(value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("sigterm", 15),
        ("15", 15),
        (15, 15),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMIN", signal.SIGRTMIN),
        (signal.SIGUSR1, signal.SIGUSR1),
    ],
)
def test_signal(value: object, number: int) -> None:
    result = parse_signal(value)
    assert result == number
    assert type(result) is int


@pytest.mark.parametrize(
    "value", ["", "SIG", "NOPE", "0", 0, -15, 65, "65", "RTMIN+99", "_DFL", "TERM\n", True, None]
)
def test_what_is_no_signal(value: object) -> None:
    with pytest.raises(DescriptorError):
        parse_signal(value)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("A=1", ("A", "1")),
        ("A=", ("A", "")),
        ("A=b=c", ("A", "b=c")),
        ("A=1\n2", ("A", "1\n2")),
        ("a.b-c=ü", ("a.b-c", "ü")),
    ],
)
def test_env(text: str, pair: tuple[str, str]) -> None:
    assert parse_env(text) == pair


@pytest.mark.parametrize("text", ["", "A", "=1", "A\n=1", "A\0=1", "A=\0", "A=\udcff", "\udcff=1"])
def test_what_is_no_variable(text: str) -> None:
    with pytest.raises(DescriptorError) as caught:
        parse_env(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(value=st.text() | st.integers() | st.floats() | st.none())
def test_parsers_raise_nothing_but_descriptor_errors(
    parse: Callable[[object], object], value: object
) -> None:
    text = ""
    try:
        parse(value)
    except DescriptorError as e:
        text = str(e)
    assert text.isprintable()


@given(st.text(alphabet=st.characters(codec=None)))
def test_shown_values_are_one_short_printable_line(text: str) -> None:
    shown = show(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 60


@given(st.integers(0, 2**23 - 1), st.sampled_from("KMGT"))
def test_letters_are_powers_of_1024(number: int, letter: str) -> None:
    assert parse_size(f"{number}{letter}") == number * 1024 ** ("KMGT".index(letter) + 1)
