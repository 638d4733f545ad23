"""Choosing id blocks and subnets."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import Code, NativertError
from nativert.store import pools

NET = IPv4Network


def test_ranges_fill_the_span_without_overlap() -> None:
    starts = [
        pools.range_start(block, n)
        for block in range(pools.BLOCKS)
        for n in range(pools.BLOCK_RANGES)
    ]
    assert starts == list(range(pools.ID_FIRST, pools.ID_END, pools.RANGE_IDS))


@given(tag=st.integers(0, 0xFFFFFF), used=st.sets(st.integers(0, 4095), max_size=50))
def test_a_chosen_subnet_is_in_the_pool_and_free(tag: int, used: set[int]) -> None:
    claimed = [NET((int(pools.POOL.network_address) + (n << 10), 22)) for n in used]
    chosen = pools.choose_subnet(f"{tag:06x}", claimed, [])
    assert chosen.prefixlen == 22
    assert chosen.subnet_of(pools.POOL)
    assert chosen not in claimed


def test_routes_of_any_size_are_avoided() -> None:
    assert pools.choose_subnet("000000", [], []) == NET("10.64.0.0/22")
    assert pools.choose_subnet("000000", [], [NET("10.64.1.7/32")]) == NET("10.64.4.0/22")
    assert pools.choose_subnet("000000", [], [NET("10.64.0.0/16")]) == NET("10.65.0.0/22")


def test_a_route_over_the_whole_pool_cannot_be_avoided_and_does_not_hinder() -> None:
    for route in ("10.0.0.0/8", "10.64.0.0/10", "0.0.0.0/0"):
        assert pools.choose_subnet("000001", [], [NET(route)]) == NET("10.64.4.0/22")


def test_the_search_goes_round_and_ends() -> None:
    upper_half = NET("10.96.0.0/11")
    assert pools.choose_subnet("000fff", [], [upper_half]) == NET("10.64.0.0/22")
    with pytest.raises(NativertError) as caught:
        pools.choose_subnet("000fff", [NET("10.64.0.0/11")], [upper_half])
    assert caught.value.code is Code.ADDRESS_EXHAUSTED


def test_routes_and_addresses_are_read_from_fib_trie(tmp_path: Path) -> None:
    fib = tmp_path / "fib_trie"
    fib.write_text(
        "Main:\n"
        "  +-- 0.0.0.0/0 3 0 5\n"
        "     |-- 0.0.0.0\n"
        "        /0 universe UNICAST\n"
        "     +-- 10.64.0.0/10 2 0 2\n"
        "        |-- 10.70.0.0\n"
        "           /22 link UNICAST\n"
        "           /32 link BROADCAST\n"
        "Local:\n"
        "     |-- 10.70.0.1\n"
        "        /32 host LOCAL\n"
    )
    assert pools.networks_in_use(fib) == {
        NET("10.70.0.0/22"),
        NET("10.70.0.0/32"),
        NET("10.70.0.1/32"),
    }
    assert pools.networks_in_use(tmp_path / "absent") == set()


def test_this_hosts_own_table_can_be_read() -> None:
    assert NET("127.0.0.0/8") in pools.networks_in_use()


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("user:100000:65536\n", set()),
        (f"user:{0x2000_0000}:1\n", {0}),
        (f"user:{0x1FFF_0000}:{0x10001}\n", {0}),
        (f"user:{0x1FFF_0000}:{0x10000}\n", set()),
        (f"user:{0x20FF_FFFF}:2\n", {0, 1}),
        (f"user:{0x6FFF_FFFF}:{1 << 31}\n", {79}),
        ("user:1:2:3\n# comment\n\nuser:x:65536\n", set()),
    ],
)
def test_blocks_that_subuid_names(text: str, blocks: set[int], tmp_path: Path) -> None:
    path = tmp_path / "subuid"
    path.write_text(text)
    assert pools.named_blocks([path, tmp_path / "absent"]) == blocks
