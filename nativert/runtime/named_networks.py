"""Named network namespaces and single links of one node: what a network plugin is asked for.

Everything that it makes carries the node's tag, and it removes nothing that does not. Who asked
for it has it removed: the runtime takes for its own what is called nv<tag>, and nothing of this is.
The name "1" is the host's own namespace.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nativert.errors import Code, NativertError
from nativert.isolation.network import named, resolver, single
from nativert.isolation.network.links import Links
from nativert.isolation.network.messages import Inside
from nativert.isolation.network.single import Face
from nativert.runtime.network import BridgeNetwork

HOST: Final = "1"
_MOST: Final = 10_000

names = named.names
pin = named.pin
unpin = named.unpin
name_servers = resolver.resolver


@dataclass(frozen=True, slots=True)
class Pair:
    """A veth: its end in the namespace and the one on the host."""

    internal: Face
    external: Face


class NamedNetworks:
    """Single steps on links, beside the node's own network; may be used from any thread."""

    def __init__(self, tag: str, network: BridgeNetwork, subnet: str) -> None:
        self.tag = tag
        self._network = network
        self._subnet = ipaddress.IPv4Network(subnet)
        self._links = Links()

    def close(self) -> None:
        """Release the socket; safe twice."""
        self._links.close()

    # -- namespaces --------------------------------------------------------------------

    def create_namespace(self) -> str:
        """Make a namespace and return its name."""
        return _first_free(f"fns-{self.tag}-", named.create)

    def delete_namespace(self, name: str) -> None:
        """Take the name away, and with it the namespace if nobody is in it."""
        if self.tag not in name:
            raise _foreign("network namespace", name)
        if name not in named.names(name):
            raise OSError(errno.ENOENT, "no such network namespace", name)
        named.unpin(name)

    # -- links -------------------------------------------------------------------------

    def create_veth(self, name: str, namespace: str) -> Pair:
        """Make a veth whose end in the namespace is called *name*."""
        with self._opened(namespace) as netns:
            # A namespace that has a link's name gets that link, if it is still free.
            own = namespace.startswith(f"nv{self.tag}") and self._links.find(namespace) is None
            if own:
                single.add_veth(namespace, netns, name)
            external = (
                namespace
                if own
                else _first_free(f"fv{self.tag}e", lambda e: single.add_veth(e, netns, name))
            )
            single.set_up(netns, name)
            return Pair(single.face(netns, name), single.face(None, external))

    def create_macvlan(self, master: str) -> str:
        """Make a macvlan over a link of the host; return its name."""
        return _first_free(f"fv{self.tag}m", lambda name: single.add_macvlan(name, master))

    def delete_link(self, name: str, namespace: str) -> None:
        """Delete a link: of the host only what carries the tag."""
        if namespace == HOST and self.tag not in name:
            raise _foreign("link", name)
        with self._opened(namespace) as netns:
            single.delete(netns, name)

    def rename(self, name: str, new: str, namespace: str) -> None:
        """Rename a link."""
        with self._opened(namespace) as netns:
            single.rename(netns, name, new)

    def move(self, name: str, namespace: str) -> None:
        """Move a link of the host into a namespace and set it up there."""
        with self._opened(namespace) as netns:
            if netns is None:
                raise NativertError(
                    f"cannot move {name}: it is in the host's namespace already",
                    code=Code.NETWORK,
                )
            single.move(name, netns)
            single.set_up(netns, name)

    def attach(self, name: str, bridge: str | None) -> None:
        """Make a link of the host a port of a bridge, or of none."""
        single.set_master(name, bridge)

    def face(self, name: str, namespace: str) -> Face:
        """Return name, MAC and address of a link."""
        with self._opened(namespace) as netns:
            return single.face(netns, name)

    def set_mac(self, name: str, namespace: str, mac: str) -> None:
        """Give a link a MAC address."""
        with self._opened(namespace) as netns:
            single.set_mac(netns, name, mac)

    def set_address(self, name: str, namespace: str, address: str) -> None:
        """Give a link ADDRESS/PREFIX; one of the node's pool gets its default route too."""
        try:
            interface = ipaddress.IPv4Interface(address)
        except ValueError as e:
            raise NativertError(f"{name}: {e}", code=Code.NETWORK) from e
        with self._opened(namespace) as netns:
            if netns is None:
                self._links.add_address(name, str(interface.ip), interface.network.prefixlen)
                return
            routed = interface.ip in self._subnet
            inside = Inside(
                name=name,
                address=str(interface.ip),
                prefix=interface.network.prefixlen,
                gateway=self._network.gateway if routed else "",
            )
            self._links.configure(netns, [inside])

    def remove_address(self, name: str, namespace: str) -> None:
        """Take a link's IPv4 addresses away."""
        with self._opened(namespace) as netns:
            single.remove_ipv4(netns, name)

    # -- bridges -----------------------------------------------------------------------

    def create_bridge(self, name: str, uuid: str) -> None:
        """Make a bridge that is found again by *uuid*; the node's own is made whole."""
        if name == self._network.bridge:
            self._network.prepare()
            return
        found = self._links.find(name)
        if found is None:
            digits = os.urandom(4).hex(":")
            self._links.add_bridge(name, f"02:6e:{digits}")
        elif found.kind != "bridge":
            raise NativertError(
                f"cannot use {name}: it is a {found.kind or 'device'}, not a bridge",
                code=Code.NETWORK,
            )
        elif self.tag not in found.alias:
            raise _foreign("bridge", name)
        self._links.bring_up(name, f"nativert {self.tag} {uuid}")

    def delete_bridge(self, uuid: str) -> None:
        """Delete the bridge that was made with *uuid*, and no other."""
        for bridge in self._links.bridges():
            if bridge.alias == f"nativert {self.tag} {uuid}":
                self._links.delete(bridge.index, bridge.name)
                return
        raise OSError(errno.ENODEV, "no such bridge of this node", uuid)

    def is_bridge(self, name: str) -> bool:
        """Return whether a bridge has this name."""
        found = self._links.find(name)
        return found is not None and found.kind == "bridge"

    # ----------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, namespace: str) -> Iterator[int | None]:
        if namespace == HOST:
            yield None
            return
        fd = named.open_named(namespace)
        try:
            yield fd
        finally:
            os.close(fd)


def uplink() -> str:
    """Return the link of the host's default route; ENODEV without any."""
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        name, destination, *_ = line.split()
        if destination == "00000000":
            return name
    raise OSError(errno.ENODEV, "the host has no default route")


def neighbour(mac: str) -> str:
    """Return the IPv4 address that the host knows for a MAC; ENOENT if it knows none."""
    for line in Path("/proc/net/arp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == mac.lower():
            return fields[0]
    raise OSError(errno.ENOENT, "no neighbour has this address", mac)


def _first_free(prefix: str, make: Callable[[str], None]) -> str:
    for number in range(_MOST):
        try:
            make(f"{prefix}{number}")
        except FileExistsError:
            continue
        return f"{prefix}{number}"
    raise OSError(errno.ENOSPC, f"{_MOST} names are taken", prefix)


def _foreign(kind: str, name: str) -> NativertError:
    return NativertError(f"cannot touch {kind} {name}: it is not this node's", code=Code.NETWORK)
