"""The packet filter of the overlay: a table of its own, made anew as a whole when it changes."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from nativert.isolation.network import nftables
from nativert.runtime.overlay.plan import Plan


def render(name: str, bridge: str, tunnel: str, subnet: str, plan: Plan, here: list[str]) -> str:
    """Return the rules; *here* are addresses of other pools that are on the bridge.

    Frames of a tunnel show no password: they are taken from the other nodes' addresses only, and
    no instance may send any.
    """
    # The VNI is the 5th to 7th byte of the header behind UDP's 8 bytes (RFC 7348).
    frame = f"udp dport {plan.port} @th,96,24 {plan.vni}"
    ours = f'{{ "{bridge}", "{tunnel}" }}'
    bridged = f"ip saddr != {subnet} ip saddr != @here"
    lines = [
        f"add set ip {name} nodes {{ type ipv4_addr;{_of(peer.address for peer in plan.peers)} }}",
        f"add set ip {name} here {{ type ipv4_addr;{_of(here)} }}",
        f"add chain ip {name} arriving {{ type filter hook prerouting priority raw; }}",
        f"add rule ip {name} arriving iifname {ours} {frame} drop",
        f"add rule ip {name} arriving {frame} ip saddr != @nodes drop",
        f"add chain ip {name} passing {{ type filter hook forward priority 0; }}",
        # To the host's other networks a node's instances go by their own node.
        f'add rule ip {name} passing iifname "{tunnel}" oifname != {ours} drop',
        f'add rule ip {name} passing iifname "{bridge}" oifname "{tunnel}" {bridged} drop',
        f"add chain ip {name} telling {{ type filter hook output priority 0; }}",
        # Between instances on one bridge the node is the way, and stays it: they may move.
        f"add rule ip {name} telling oifname {ours} icmp type redirect drop",
        f"add chain ip {name} source {{ type nat hook postrouting priority 100; }}",
        f"add rule ip {name} source ip saddr @here oifname != {ours} masquerade",
        f'add rule ip {name} source ip saddr @here oifname "{bridge}" ct status dnat masquerade',
    ]
    return "\n".join(lines) + "\n"


def ensure(name: str, rules: str) -> str:
    """Have the table have *rules*; return what was wrong with it, "" if nothing."""
    mark = f"nativert {zlib.crc32(rules.encode()):08x}"
    there = nftables.described(name)
    if there is not None and mark.encode() in there:
        return ""
    # `add` before `delete`: it may have been removed since it was looked for.
    nftables.run(
        f"add table ip {name}\ndelete table ip {name}\n"
        f'create table ip {name} {{ comment "{mark}"; }}\n{rules}'
    )
    return "the table was removed" if there is None else "the table was of another content"


def remove(name: str) -> None:
    """Remove the table; safe twice."""
    if nftables.described(name) is not None:
        nftables.run(f"add table ip {name}\ndelete table ip {name}\n")


def _of(addresses: Iterable[str]) -> str:
    listed = ", ".join(sorted(set(addresses)))
    return f" elements = {{ {listed} }};" if listed else ""
