"""The bridges of a node's virtual networks: one each, without an address of the host.

Made when the first interface needs one, or on request; the kernel knows which there are, by the
alias. Satisfies `protocols.VirtualBridges`. Kernel refusals are OSError.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence

from nativert.errors import Code, NativertError
from nativert.isolation.network import single, sysctl
from nativert.isolation.network.links import Links
from nativert.isolation.network.messages import Link
from nativert.runtime.protocols import Attached


class NodeBridges:
    """Of the node whose tag is given; may be used from any thread and beside other processes."""

    def __init__(self, tag: str, links: Links) -> None:
        self._prefix = f"nw{tag}"
        self._alias = f"nativert {tag} network "
        self._links = links

    def name(self, uuid: str) -> str:
        """Return what the bridge of a network is called."""
        return self._prefix + hashlib.sha256(uuid.encode()).hexdigest()[:6]

    def make(self, uuid: str) -> int:
        """Make a network's bridge, or mend it; return its ifindex."""
        name = self.name(uuid)
        bridge = self._links.find(name)
        if bridge is None:
            digits = hashlib.sha256(name.encode()).digest()[:4].hex(":")
            try:
                self._links.add_bridge(name, f"02:6e:{digits}")
            except FileExistsError:
                pass  # another command of this node was quicker
            bridge = self._links.find(name)
        if bridge is None:
            raise OSError(errno.ENODEV, "the bridge was removed meanwhile", name)
        if bridge.kind != "bridge" or bridge.alias not in ("", self._alias + uuid):
            what = bridge.alias or bridge.kind or "device"
            raise NativertError(
                f"cannot use {name} for network {uuid}: it is {what}", code=Code.NETWORK
            )
        if not bridge.up or not bridge.alias:
            self._links.bring_up(name, self._alias + uuid)
        # The host has no part in it: no IPv6 address of its own, and no answer to who asks
        # there for an address that it has elsewhere.
        sysctl.ensure(f"ipv4/conf/{name}/arp_ignore", "1")
        sysctl.disable_ipv6(name)
        return bridge.index

    def remove(self, uuid: str) -> None:
        """Remove a network's bridge; NativertError while interfaces are on it, or without it."""
        found = self._found().get(uuid)
        if found is None:
            raise NativertError(f"network {uuid} is not on this node", code=Code.NETWORK)
        members = sorted(self._links.members(found.index))
        if members:
            raise NativertError(
                f"cannot remove network {uuid}: {len(members)} interfaces are on it",
                code=Code.NETWORK,
                hint=f"among them {members[0]}; clean their instances first",
            )
        self._links.delete(found.index, found.name)

    def present(self) -> list[str]:
        """Return the networks that have a bridge."""
        return sorted(self._found())

    def mend(self, attached: Sequence[Attached]) -> list[str]:
        """Put back what was taken off its network, and take off what shall be; say what was."""
        mended: list[str] = []
        for uuid in sorted({each.network for each in attached}):
            if uuid not in self._found():
                mended.append(f"bridge {self.name(uuid)} was removed")
            members = self._links.members(self.make(uuid))
            for each in attached:
                on = each.link in members
                gone = self._links.name_of(each.index) != each.link
                if each.network != uuid or on == each.connected or gone:
                    continue
                (self.connect if each.connected else self.disconnect)(each)
                mended.append(f"link {each.link} was {'put on' if on else 'taken off'} its network")
        return mended

    def destroy(self) -> None:
        """Remove every bridge; the caller has seen that no instance is on one."""
        for bridge in self._found().values():
            self._links.delete(bridge.index, bridge.name)

    def connect(self, attached: Attached) -> None:
        """Put an interface on its network again; ENODEV if it is gone."""
        self._check(attached)
        self._links.enslave(attached.index, attached.link, self.make(attached.network))

    def disconnect(self, attached: Attached) -> None:
        """Take an interface off its network; ENODEV if it is gone."""
        self._check(attached)
        single.set_master(attached.link, None)

    def _check(self, attached: Attached) -> None:
        if self._links.name_of(attached.index) != attached.link:
            raise OSError(errno.ENODEV, "no such link", attached.link)

    def _found(self) -> dict[str, Link]:
        return {
            bridge.alias.removeprefix(self._alias): bridge
            for bridge in self._links.bridges()
            if bridge.alias.startswith(self._alias)
        }
