"""The node's own packet filter table: masquerading, published ports, martians.

Written by the `nft` binary, one atomic transaction at a time (nft(8)); everything in it
carries the node's tag, and nothing outside of it is touched.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nativert.isolation.network.netlink import (
    NETLINK_NETFILTER,
    Netlink,
    Request,
    attribute,
    attributes,
)

PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin"
TIMEOUT_S: Final = 30.0
# Numbers, since nft looks names up in /etc/protocols, which a small host may not have.
PROTOCOLS: Final = {"tcp": 6, "udp": 17}

_NFNL_SUBSYS_NFTABLES: Final = 10
_NFT_MSG_GETTABLE: Final = 1
_NFT_MSG_GETGEN: Final = 16
_NFTA_GEN_ID: Final = 1
_NFTA_TABLE_NAME: Final = 1
_NFPROTO_IPV4: Final = 2
_REFUSALS: Final = {
    os.strerror(number): number
    for number in (errno.EEXIST, errno.ENOENT, errno.EPERM, errno.EBUSY, errno.EOPNOTSUPP)
}


@dataclass(frozen=True, slots=True)
class Published:
    """One port of the host that leads to an address; `host_ip` None = every address."""

    host_ip: str | None
    protocol: str
    host_port: int
    address: str
    port: int

    @property
    def key(self) -> tuple[str | None, str, int]:
        """What the host's side of it is, as one map key."""
        return (self.host_ip, self.protocol, self.host_port)


def run(text: str) -> None:
    """Feed nft a transaction on stdin: all of it happens or none.

    Raises OSError with the kernel's errno where nft tells it, EIO else.
    """
    _nft(["-f", "-"], text)


def listing(*what: str) -> list[dict[str, Any]]:
    """Return the objects that `nft list` names, as libnftables-json(5) has them."""
    import json

    found: list[dict[str, Any]] = json.loads(_nft(["-j", "list", *what], ""))["nftables"]
    return found


def _nft(arguments: Sequence[str], text: str) -> str:
    import shutil
    import subprocess

    binary = shutil.which("nft", path=PATH)
    if binary is None:
        raise FileNotFoundError(errno.ENOENT, "nft is not installed", "nft")
    done = subprocess.run(
        [binary, *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        # The C locale keeps the kernel's error texts as os.strerror() gives them.
        env={"LC_ALL": "C", "PATH": PATH},
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        number = next((n for text, n in _REFUSALS.items() if lines[0].endswith(text)), errno.EIO)
        raise OSError(number, f"nft: {lines[0]}")
    return done.stdout


def described(table: str) -> bytes | None:
    """Return what the kernel says of a table, its comment among it; None if there is none."""
    # One netlink message, 0.1 ms, instead of a process.
    body = struct.pack("=BBH", _NFPROTO_IPV4, 0, 0)
    body += attribute(_NFTA_TABLE_NAME, table.encode() + b"\0")
    kind = _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETTABLE
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            [[answer]] = netlink.transact([Request(kind, 0, body, "get table", table)])
    except FileNotFoundError:
        return None
    return answer


class Table:
    """The table of one node, for a bridge and the network on it; *tunnel* leads to other nodes."""

    def __init__(self, name: str, bridge: str, subnet: str, tunnel: str) -> None:
        self.name = name
        self._bridge = bridge
        self._subnet = subnet
        self._tunnel = tunnel
        # The table's comment tells whether it is of this version and for this network.
        self._sound: tuple[int, frozenset[Published]] | None = None
        self._mark = f"nativert {zlib.crc32(self._rules('').encode()):08x}"

    def render(self) -> str:
        """Return the transaction that makes the table; it fails if there is one."""
        # `create` makes two nodes' commands race safely: adding rules twice would double them.
        comment = f' {{ comment "{self._mark}"; }}'
        return f"create table ip {self.name}{comment}\n" + self._rules(self.name)

    def _rules(self, name: str) -> str:
        bridge, subnet = self._bridge, self._subnet
        key = "inet_proto . inet_service : ipv4_addr . inet_service"
        at, every = "ip daddr . meta l4proto . th dport", "meta l4proto . th dport"
        lines = [
            f"add map ip {name} ports {{ type {key}; }}",
            f"add map ip {name} ports_at {{ type ipv4_addr . {key}; }}",
            # route_localnet on the bridge would let an instance reach what listens on 127.0.0.1.
            f"add chain ip {name} martians {{ type filter hook prerouting priority raw; }}",
            f'add rule ip {name} martians iifname "{bridge}" ip saddr 127.0.0.0/8 drop',
            f'add rule ip {name} martians iifname "{bridge}" ip daddr 127.0.0.0/8 drop',
        ]
        # From other hosts and siblings by prerouting, from the host itself by output.
        for chain, hook in (("arriving", "prerouting"), ("leaving", "output")):
            lines += [
                f"add chain ip {name} {chain} {{ type nat hook {hook} priority -100; }}",
                f"add rule ip {name} {chain} fib daddr type local dnat ip to {at} map @ports_at",
                f"add rule ip {name} {chain} fib daddr type local dnat ip to {every} map @ports",
            ]
        source = f"add rule ip {name} source"
        lines += [
            f"add chain ip {name} source {{ type nat hook postrouting priority 100; }}",
            # Other nodes know our instances by their own addresses.
            f'{source} ip saddr {subnet} oifname != {{ "{bridge}", "{self._tunnel}" }} masquerade',
            # A sibling that asks for a published port would be answered directly, from an
            # address that it never wrote to.
            f'{source} ip saddr {subnet} oifname "{bridge}" ct status dnat masquerade',
            f'{source} ip saddr 127.0.0.0/8 oifname "{bridge}" masquerade',
        ]
        return "\n".join(lines) + "\n"

    def mark(self) -> str | None:
        """Return "" if there is no table, its mark if it is ours as it should be, else None."""
        answer = described(self.name)
        if answer is None:
            return ""
        return self._mark if self._mark.encode() in answer else None

    def ensure(self) -> bool:
        """Make the table unless it is there; one of another version keeps its ports.

        Returns whether there was none.
        """
        mark = self.mark()
        if mark == "":
            try:
                run(self.render())
            except FileExistsError:
                return False  # another command of this node was quicker
            return True
        if mark is None:
            elements = self._elements("add", self.ports(), data=True)
            run(f"delete table ip {self.name}\n{self.render()}{elements}")
        return False

    def problem(self, wanted: Sequence[Published]) -> str:
        """Return what of the table is not as it should be with these ports; "" if it is sound.

        The table is listed only when something in the host's packet filter has changed since
        it was found sound.
        """
        state = (_generation(), frozenset(wanted))
        if state == self._sound:
            return ""
        if self.mark() is None:
            return "the table is of another version"
        try:
            objects = listing("table", "ip", self.name)
        except FileNotFoundError:
            return "the table was removed"
        rules = Counter(entry["rule"]["chain"] for entry in objects if "rule" in entry)
        asked = Counter(
            line.split()[4] for line in self.render().splitlines() if line.startswith("add rule ")
        )
        if rules != asked:
            chains = ", ".join(sorted(chain for chain in asked if rules[chain] != asked[chain]))
            return f"rules were changed in {chains or 'a foreign chain'}"
        present = frozenset(parse_ports(objects))
        if lost := state[1] - present:
            return f"{len(lost)} published ports were removed"
        self._sound = state
        return ""

    def rebuild(self, ports: Sequence[Published]) -> None:
        """Make the table anew with these ports and those that it still has, at once."""
        kept = {port.key: port for port in (*self.ports(), *ports)}
        gone = "" if self.mark() == "" else f"delete table ip {self.name}\n"
        run(f"{gone}{self.render()}{self._elements('add', kept.values(), data=True)}")

    def ports(self) -> list[Published]:
        """Return the published ports as the kernel has them."""
        try:
            return parse_ports(listing("table", "ip", self.name))
        except FileNotFoundError:
            return []

    def add(self, ports: Iterable[Published]) -> None:
        """Publish all ports or none; EEXIST if one of them leads elsewhere already."""
        if text := self._elements("add", ports, data=True):
            run(text)

    def remove(self, ports: Iterable[Published]) -> None:
        """Take back all ports or none; ENOENT if one of them is not published."""
        if text := self._elements("delete", ports, data=False):
            run(text)

    def delete(self) -> None:
        """Remove the table with all that is in it; safe twice."""
        try:
            run(f"delete table ip {self.name}\n")
        except OSError as e:
            if e.errno != errno.ENOENT:
                raise

    def _elements(self, verb: str, ports: Iterable[Published], *, data: bool) -> str:
        lines: list[str] = []
        for port in ports:
            key = f"{PROTOCOLS[port.protocol]} . {port.host_port}"
            if port.host_ip is not None:
                key = f"{port.host_ip} . {key}"
            name = "ports" if port.host_ip is None else "ports_at"
            value = f" : {port.address} . {port.port}" if data else ""
            lines.append(f"{verb} element ip {self.name} {name} {{ {key}{value} }}\n")
        return "".join(lines)


def _generation() -> int:
    """Return the number that every change of the host's packet filter raises."""
    body = struct.pack("=BBH", 0, 0, 0)
    kind = _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETGEN
    with Netlink(NETLINK_NETFILTER) as netlink:
        [[answer]] = netlink.transact([Request(kind, 0, body, "get generation")])
    return int.from_bytes(attributes(answer[4:])[_NFTA_GEN_ID], "big")


def parse_ports(objects: Sequence[dict[str, Any]]) -> list[Published]:
    """Return the elements of both port maps of a table listed as JSON."""
    # nft prints a protocol's name where /etc/protocols knows one, its number elsewhere.
    names = {str(number): name for name, number in PROTOCOLS.items()}
    found: list[Published] = []
    for entry in objects:
        declared = entry.get("map")
        if declared is None:
            continue
        for key, value in declared.get("elem", []):
            *host_ip, protocol, host_port = key["concat"]
            address, port = value["concat"]
            found.append(
                Published(
                    host_ip=host_ip[0] if host_ip else None,
                    protocol=names.get(str(protocol), str(protocol)),
                    host_port=int(host_port),
                    address=address,
                    port=int(port),
                )
            )
    return found
