"""What a node knows of the overlay, in a file that every process of the node goes by.

The agent writes it; it is true of this boot only. From it alone follows which way a packet goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec

from nativert.store import files
from nativert.store.boot import boot_id

# Addresses that have ever moved, and the epoch of the migration that brought each here.
Here = Mapping[str, int]


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another node: its pool, where tunnels to it end, and which moved addresses it has."""

    node: str
    mac: str
    subnet: str
    address: str
    here: dict[str, int] = {}

    @property
    def gateway(self) -> str:
        """The address of its bridge: the first of its pool."""
        return str(IPv4Network(self.subnet).network_address + 1)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The overlay as one node has it; `refused` are nodes that are not joined, and why."""

    boot_id: str
    vni: int
    port: int
    address: str
    here: dict[str, int] = {}
    peers: tuple[Peer, ...] = ()
    refused: dict[str, str] = {}


def path_below(state_dir: Path) -> Path:
    """Return where the plan is, below the directory of what the network must undo."""
    return state_dir / "overlay.json"


def read(path: Path) -> Plan | None:
    """Return what the agent has written in this boot, None where it has not."""
    try:
        plan = files.decode(path, Plan)
    except (FileNotFoundError, files.DamagedError):
        return None  # An agent writes it anew.
    return plan if plan.boot_id == boot_id() else None


def write(path: Path, plan: Plan) -> None:
    """Put *plan* in the place of the one before; one process at a time does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In one step: whoever attaches an interface reads it, and most nodes have none.
    files.replace_durably(path, msgspec.json.encode(plan))


def destinations(plan: Plan, own: IPv4Network) -> dict[IPv4Network, str]:
    """Return the gateway for each network that is not *own*; "" is the node's own bridge.

    Of two nodes that both say that an address is there, the newer epoch is right: the other one
    has not heard yet that it is gone.
    """
    found = {IPv4Network(peer.subnet): peer.gateway for peer in plan.peers}
    newest: dict[str, tuple[int, str]] = {}
    for gateway, here in (("", plan.here), *((peer.gateway, peer.here) for peer in plan.peers)):
        for address, epoch in here.items():
            if address not in newest or epoch > newest[address][0]:
                newest[address] = (epoch, gateway)
    homes = {own: "", **found}
    single: dict[IPv4Network, str] = {}
    for address, (_, gateway) in newest.items():
        home = next((homes[pool] for pool in homes if IPv4Address(address) in pool), None)
        # At home the way to its pool is the way to it.
        if gateway != home:
            single[IPv4Network(address)] = gateway
    return found | single


def foreign(plan: Plan, own: IPv4Network) -> list[str]:
    """Return the addresses of other pools that are on this node's bridge."""
    ways = destinations(plan, own)
    return sorted(str(net.network_address) for net, gateway in ways.items() if not gateway)
