"""Values that cross from limits to interface files: CPU lists, weights, quotas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.isolation.cgroups import quota, weight
from nativert.isolation.cgroups.counters import field
from nativert.isolation.cgroups.cpulist import format_list, parse_list


@given(st.frozensets(st.integers(0, 4096)))
def test_a_cpu_list_survives_the_round_trip(cpus: frozenset[int]) -> None:
    assert parse_list(format_list(cpus)) == cpus


def test_cpu_lists_are_printed_as_the_kernel_does() -> None:
    assert format_list({5, 0, 1, 2, 3}) == "0-3,5"
    assert format_list([]) == ""
    assert parse_list("0-3,5\n") == {0, 1, 2, 3, 5}


@pytest.mark.parametrize("text", ["a", "3-1", "-1", "0-", "1-2-3"])
def test_what_is_no_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_list(text)


def test_every_weight_has_its_own_shares() -> None:
    for share in range(weight.WEIGHT_MIN, weight.WEIGHT_MAX + 1):
        assert weight.weight_from_shares(weight.shares_from_weight(share)) == share


def test_ends_and_defaults_of_weight_and_shares_meet() -> None:
    assert [weight.shares_from_weight(w) for w in (1, 100, 10000)] == [2, 1024, 262144]


def test_a_short_quota_gets_a_longer_period() -> None:
    assert quota.from_cores(0.5) == (50_000, 100_000)
    assert quota.from_cores(2) == (200_000, 100_000)
    assert quota.from_cores(0.004) == (4_000, 1_000_000)
    assert quota.from_cores(quota.CORES_MIN) == (quota.QUOTA_MIN_US, 1_000_000)


def test_a_field_is_found_by_its_whole_key() -> None:
    content = b"total_rss_huge 7\nrss 1\ntotal_rss 2\n"
    assert field(content, b"total_rss") == 2
    assert field(content, b"total_rss_huge") == 7
    assert field(content, b"rss_huge") is None
    assert field(b"oom_kill 3", b"oom_kill") == 3
    assert field(b"", b"oom_kill") is None
