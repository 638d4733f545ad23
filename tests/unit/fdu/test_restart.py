"""The restart decision, with a clock that the tests turn."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.fdu import restart
from nativert.fdu.attendance import Restart
from nativert.fdu.restart import Retry, decide, left_s

CHANCES = st.floats(0, 1)
POLICIES = st.builds(
    lambda policy, most, backoff, factor, reset: Restart(
        policy=policy, max=most, backoff=backoff, backoff_max=backoff * factor, reset=reset
    ),
    st.sampled_from(["never", "on-failure", "always"]),
    st.none() | st.integers(1, 20),
    st.floats(0.05, 10),
    st.floats(1, 400),
    st.floats(1, 3600),
)
ENDS = st.tuples(st.booleans(), st.floats(0, 7200), CHANCES)


@dataclass
class Clock:
    """A life of ends under one policy."""

    policy: Restart
    now: float = 1.7e9
    run: int = 0
    retry: Retry | None = None
    delays: list[float] = field(default_factory=list)

    def end(self, *, failed: bool = True, healthy_s: float = 0.0, chance: float = 1.0) -> Retry:
        self.now += healthy_s
        self.run += 1
        self.retry = decide(
            self.policy,
            self.retry,
            run=self.run,
            failed=failed,
            healthy_s=healthy_s,
            now=self.now,
            chance=chance,
        )
        if self.retry.at is not None:
            self.delays.append(self.retry.at - self.now)
            self.now = self.retry.at
        return self.retry


def test_the_wait_doubles_up_to_five_minutes() -> None:
    clock = Clock(Restart(policy="always"))
    for _ in range(11):
        clock.end()
    assert [round(delay) for delay in clock.delays] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_ten_minutes_of_health_begin_anew() -> None:
    clock = Clock(Restart(policy="always"))
    for _ in range(5):
        clock.end()
    clock.end(healthy_s=599)
    assert round(clock.delays[-1]) == 32
    clock.end(healthy_s=600)
    assert round(clock.delays[-1]) == 1


def test_it_gives_up_after_so_many_in_a_row_and_begins_anew_after_health() -> None:
    clock = Clock(Restart(policy="on-failure", max=3))
    assert [clock.end().gave_up for _ in range(4)] == [False, False, False, True]
    assert clock.retry is not None
    assert clock.retry.reason == "gave up after 3 restarts"
    assert (
        Clock(Restart(policy="on-failure", max=3), retry=clock.retry).end(healthy_s=600).at
        is not None
    )


@pytest.mark.parametrize(
    ("policy", "failed", "again"),
    [
        ("never", True, False),
        ("never", False, False),
        ("on-failure", True, True),
        ("on-failure", False, False),
        ("always", True, True),
        ("always", False, True),
    ],
)
def test_which_ends_count(policy: str, failed: bool, again: bool) -> None:
    retry = Clock(Restart(policy=policy)).end(failed=failed)  # type: ignore[arg-type]
    assert (retry.at is not None) is again
    assert bool(retry.reason) is not again
    assert not retry.gave_up


@given(policy=POLICIES, ends=st.lists(ENDS, max_size=30))
def test_every_life_keeps_the_rules(policy: Restart, ends: list[tuple[bool, float, float]]) -> None:
    clock = Clock(policy)
    row = 0
    for failed, healthy_s, chance in ends:
        if healthy_s >= policy.reset_s:
            row = 0
        ended = clock.now + healthy_s
        retry = clock.end(failed=failed, healthy_s=healthy_s, chance=chance)
        if retry.at is None:
            assert retry.reason
            assert retry.gave_up == (
                policy.max is not None
                and row >= policy.max
                and (policy.policy == "always" or (policy.policy == "on-failure" and failed))
            )
            return
        row += 1
        assert policy.policy == "always" or (policy.policy == "on-failure" and failed)
        assert retry.failures == row
        assert policy.max is None or row <= policy.max
        whole = min(policy.backoff_s * 2 ** (row - 1), policy.backoff_max_s)
        # The sum with seconds since 1970 has lost the last bits.
        assert whole / 2 - 1e-5 <= retry.at - ended <= whole + 1e-5


@given(policy=POLICIES, failed=st.booleans(), chances=st.tuples(CHANCES, CHANCES))
def test_an_end_is_decided_once(
    policy: Restart, failed: bool, chances: tuple[float, float]
) -> None:
    first = decide(policy, None, run=4, failed=failed, healthy_s=0, now=5.0, chance=chances[0])
    again = decide(
        policy, first, run=4, failed=not failed, healthy_s=9e9, now=99.0, chance=chances[1]
    )
    assert again == first


@given(
    retry=st.builds(Retry, run=st.integers(1, 9), at=st.floats(0, 2e9), delay_s=st.floats(0, 300)),
    now=st.floats(0, 4e9),
)
def test_a_clock_that_jumps_makes_no_wait_longer(retry: Retry, now: float) -> None:
    left = left_s(retry, now)
    assert left is not None
    assert 0 <= left <= retry.delay_s


def test_what_is_stored_is_read_again_and_damage_is_nothing() -> None:
    retry = Clock(Restart(policy="always")).end()
    assert restart.decode(restart.encode(retry)) == retry
    assert restart.decode('{"run": "four"}') is None
    assert restart.decode(None) is None
