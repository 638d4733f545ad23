"""What nodes draw from: ranges of host ids, and subnets of 10.64.0.0/10."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from nativert.errors import Code, NativertError

SUBORDINATE_IDS: Final = (Path("/etc/subuid"), Path("/etc/subgid"))
ID_FIRST: Final = 0x2000_0000
ID_END: Final = 0x7000_0000
RANGE_IDS: Final = 65_536
BLOCK_RANGES: Final = 256
_BLOCK_IDS: Final = RANGE_IDS * BLOCK_RANGES
BLOCKS: Final = (ID_END - ID_FIRST) // _BLOCK_IDS

POOL: Final = IPv4Network("10.64.0.0/10")
SUBNET_PREFIX: Final = 22


def range_start(block: int, number: int) -> int:
    """Return the first host id of range *number* (0..255) of *block*."""
    return ID_FIRST + block * _BLOCK_IDS + number * RANGE_IDS


def named_blocks(paths: Iterable[Path]) -> set[int]:
    """Return the blocks that subuid(5) or subgid(5) name a part of."""
    blocks: set[int] = set()
    for path in paths:
        try:
            lines = path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            fields = line.split(":")
            if len(fields) != 3 or not (fields[1].isdecimal() and fields[2].isdecimal()):
                continue
            first, count = int(fields[1]), int(fields[2])
            low, high = max(first, ID_FIRST), min(first + count, ID_END)
            if low < high:
                blocks.update(
                    range((low - ID_FIRST) // _BLOCK_IDS, (high - 1 - ID_FIRST) // _BLOCK_IDS + 1)
                )
    return blocks


def choose_subnet(
    tag: str, claimed: Iterable[IPv4Network], in_use: Iterable[IPv4Network]
) -> IPv4Network:
    """Return the first free /22 of 10.64.0.0/10 from the place that *tag* points to.

    Raises NativertError(ADDRESS_EXHAUSTED).
    """
    # A route that holds the whole pool (a VPN's 10.0.0.0/8) cannot be avoided; ours is the
    # longer prefix and wins.
    taken = [*claimed, *(n for n in in_use if n.overlaps(POOL) and not POOL.subnet_of(n))]
    count = 1 << (SUBNET_PREFIX - POOL.prefixlen)
    start = int(tag, 16) % count
    for step in range(count):
        number = (start + step) % count
        base = int(POOL.network_address) + (number << (32 - SUBNET_PREFIX))
        subnet = IPv4Network((base, SUBNET_PREFIX))
        if not any(subnet.overlaps(network) for network in taken):
            return subnet
    raise NativertError(
        f"no /{SUBNET_PREFIX} of {POOL} is free of the host's routes and other nodes",
        code=Code.ADDRESS_EXHAUSTED,
        hint="see ip route; remove nodes or routes that are not needed any more",
    )


def networks_in_use(fib_trie: Path = Path("/proc/net/fib_trie")) -> set[IPv4Network]:
    """Return the destinations of all routes and the addresses of this network namespace.

    Default routes are left out; see proc(5) and the kernel's fib_trie.txt.
    """
    try:
        lines = fib_trie.read_text().splitlines()
    except FileNotFoundError:
        return set()  # a kernel without IPv4 has no route to collide with
    networks: set[IPv4Network] = set()
    leaf = ""
    for line in lines:
        # A leaf "|-- 10.0.0.0" is followed by one line "/8 universe UNICAST" per route.
        kind, _, rest = line.strip().partition(" ")
        if kind == "|--":
            leaf = rest
        elif kind.startswith("/") and kind != "/0":
            networks.add(IPv4Network(f"{leaf}{kind}"))
    return networks
