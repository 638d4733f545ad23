"""Rows of checks, with a clock that the tests turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nativert.fdu.attendance import Health
from nativert.runtime.supervision.health import Checks
from nativert.runtime.supervision.probe import Result

GOOD, BAD = Result(True, "fine"), Result(False, "bad")


def begin(**fields: object) -> Checks:
    options = {"tcp": 80, "interval": 10, "retries": 3} | fields
    return Checks.begin(Health(**options), 1, 100.0)  # type: ignore[arg-type]


def test_retries_in_a_row_make_it_unhealthy_once() -> None:
    checks = begin()
    results = [GOOD, BAD, BAD, GOOD, BAD, BAD, BAD, BAD, GOOD]
    told = [checks.note(each, 101.0 + n) for n, each in enumerate(results)]
    assert told == ["healthy", None, None, None, None, None, "unhealthy", None, "healthy"]
    assert checks.last == "fine"


def test_the_start_period_forgives_until_it_was_healthy() -> None:
    checks = begin(start_period=60, retries=1)
    assert checks.note(BAD, 159.0) is None
    assert checks.failures == 0
    assert checks.note(BAD, 161.0) == "unhealthy"
    early = begin(start_period=60, retries=1)
    assert early.note(GOOD, 110.0) == "healthy"
    assert early.note(BAD, 111.0) == "unhealthy"


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_it_is_what_its_last_checks_say(results: list[bool], retries: int) -> None:
    checks = begin(retries=retries)
    for number, healthy in enumerate(results):
        checks.note(GOOD if healthy else BAD, 101.0 + number)
        assert checks.due == 101.0 + number + 10
    if results[-retries:] == [False] * retries:
        assert checks.healthy is False
    elif results and results[-1]:
        assert checks.healthy is True
    assert checks.failures <= len(results)
