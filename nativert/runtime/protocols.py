"""What the runtime needs from a node, as Protocols: network, files and downloads.

The node brings its own for all of them; a plugin may bring others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

# Called with the bytes received so far and the whole length, None where the server does not say.
Progress = Callable[[int, int | None], None]


class InterfaceRequest(msgspec.Struct, frozen=True):
    """One interface that an instance wants; `link` is the host side's name (at most 15 bytes)."""

    name: str
    link: str
    address: str
    prefix: int
    gateway: str
    mac: str | None = None
    bandwidth_mbit: int = 0  # in each direction; 0 = unlimited
    network: str = ""  # the UUID of a virtual network; "" = the node's own


class Attached(msgspec.Struct, frozen=True):
    """One interface that an instance has; `index` is the host side's, as rtnetlink(7) counts."""

    name: str
    link: str
    index: int
    mac: str
    address: str
    network: str = ""
    connected: bool = True  # False: taken off its network on request


class PortRequest(msgspec.Struct, frozen=True):
    """One port of the host that leads to a port of an instance; `host_ip` None = every address."""

    host_ip: str | None
    host_port: int
    instance_port: int
    protocol: str  # "tcp" | "udp"


class Counters(msgspec.Struct, frozen=True):
    """Sums over an instance's interfaces since they were made, as the instance sees them."""

    rx_bytes: int
    rx_packets: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_dropped: int


class DownloadLimits(msgspec.Struct, frozen=True):
    """What a download may cost before it is given up."""

    max_bytes: int
    connect_timeout_s: float
    stall_timeout_s: float
    total_timeout_s: float


class NetworkManager(Protocol):
    """Links, addresses and ports of one node; namespaces are given as descriptors."""

    def prepare(self) -> None:
        """Make the node's bridge, sysctls and packet filter base; idempotent."""
        ...

    def attach(self, netns: int, interfaces: Sequence[InterfaceRequest]) -> tuple[Attached, ...]:
        """Give the namespace every interface, or none."""
        ...

    def detach(self, attached: Sequence[Attached]) -> None:
        """Cut the interfaces off now and have them deleted in the background; safe twice."""
        ...

    def gone(self, attached: Sequence[Attached]) -> bool:
        """Return whether the kernel confirms that none of the links is left."""
        ...

    def publish(self, address: str, ports: Sequence[PortRequest]) -> None:
        """Lead every port of the host to the address, or none."""
        ...

    def withdraw(self, address: str) -> None:
        """Take back every port published to the address; safe twice."""
        ...

    def counters(self, attached: Sequence[Attached]) -> Counters:
        """Return the traffic of the interfaces, as the instance sees it."""
        ...

    def resolver(self) -> str:
        """Return the text of an instance's resolv.conf(5)."""
        ...

    def links(self) -> tuple[str, ...]:
        """Return the host's links that carry this node's tag."""
        ...

    def present(self) -> bool:
        """Return whether what `prepare` made, or part of it, is on the host."""
        ...

    def destroy(self) -> None:
        """Remove what `prepare` made; refuses while instances are attached."""
        ...

    def close(self) -> None:
        """Finish the background deletions and release descriptors."""
        ...


@runtime_checkable
class Mending(Protocol):
    """A NetworkManager that can put back what others took away from the node's own part."""

    def mend(
        self, attached: Sequence[Attached], ports: Mapping[str, Sequence[PortRequest]]
    ) -> list[str]:
        """Put back bridge, rules, links on the bridge, and ports by address; say what was."""
        ...

    def published_addresses(self) -> set[str]:
        """Return the addresses that ports of the host lead to."""
        ...


class VirtualBridges(Protocol):
    """The virtual networks that a node has, by their UUIDs."""

    def make(self, uuid: str) -> int:
        """Make what interfaces of the network are put on; return its ifindex; idempotent."""
        ...

    def remove(self, uuid: str) -> None:
        """Remove it; refuses while interfaces are on it."""
        ...

    def present(self) -> list[str]:
        """Return the networks that the node has."""
        ...

    def connect(self, attached: Attached) -> None:
        """Put an interface that was taken off its network on it again; safe twice."""
        ...

    def disconnect(self, attached: Attached) -> None:
        """Take an interface off its network; safe twice."""
        ...


@runtime_checkable
class WithVirtualNetworks(Protocol):
    """A NetworkManager that can put interfaces on other networks than the node's own."""

    @property
    def virtual(self) -> VirtualBridges:
        """Those other networks."""
        ...


@runtime_checkable
class Reaching(Protocol):
    """A NetworkManager that other nodes' networks are joined with."""

    def reaches(self, address: str) -> bool:
        """Return whether an instance may have an address of another node's pool here."""
        ...


class Os(Protocol):
    """Files and downloads on the host's side."""

    def make_dir(
        self, path: Path, *, mode: int = 0o755, owner: tuple[int, int] | None = None
    ) -> None:
        """Make a directory, and those above it where they are missing."""
        ...

    def remove_tree(self, path: Path) -> None:
        """Remove a tree by descriptors: follows no link, crosses no mount; safe when absent."""
        ...

    def write_file(
        self, path: Path, data: bytes, *, mode: int = 0o644, owner: tuple[int, int] | None = None
    ) -> None:
        """Put a file in place at once: a temporary one, then rename(2)."""
        ...

    def read_file(self, path: Path, *, limit: int = 1 << 20) -> bytes:
        """Return a whole file of at most `limit` bytes."""
        ...

    def exists(self, path: Path) -> bool:
        """Return whether something has this name; a dangling link counts."""
        ...

    def chown_tree(self, path: Path, owner: tuple[int, int]) -> None:
        """Give a tree to (uid, gid) by descriptors; follows no link."""
        ...

    def download(
        self, uri: str, target: Path, *, limits: DownloadLimits, progress: Progress | None
    ) -> None:
        """Fetch a file into `target` within the limits."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Return the bytes that an unprivileged user may still write there; see statvfs(3)."""
        ...


class Reporter(Protocol):
    """Who hears of every outcome; the names are those of a fog05 runtime plugin."""

    def update_fdu_status(self, fdu: str, instance: str, status: str) -> None:
        """An operation has ended in *status*, a word of the wire."""
        ...

    def write_fdu_error(self, fdu: str, instance: str, code: int, message: str) -> None:
        """An operation has failed; the state is what it was before."""
        ...


class Supervision(Protocol):
    """Somebody who is always there: the agent, or a foreground `run`."""

    def before_start(self, ref: str) -> None:
        """Start what the instance depends on and wait for it; NativertError."""
        ...

    def health(self, uuid: str) -> dict[str, object] | None:
        """Return status, failures and the last words of the checks; None without checks."""
        ...


class Moving(Protocol):
    """Somebody who reaches other nodes: the agent of a node in a network."""

    def migrate(self, ref: str, peer: str, *, progress: Progress | None = None) -> dict[str, Any]:
        """Move an instance to the node *peer*; return what that says of it."""
        ...
