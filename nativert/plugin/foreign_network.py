"""`runtime.protocols.NetworkManager` made of a network plugin that speaks fog05's functions.

Such a plugin finds a namespace by its name, so the instance's is pinned under the name of each
of its links. Everything is found again by that name: nothing is kept here, nothing is lost with
this process. The functions have no published ports, bandwidths or counters.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from nativert.errors import Code, NativertError
from nativert.plugin.string_api import Call, arguments, result_of
from nativert.runtime import named_networks
from nativert.runtime.protocols import Attached, Counters, InterfaceRequest, PortRequest


class ForeignNetwork:
    """The network of a node behind a network plugin.

    `tag` is the node's, `bridge` the one that interfaces are put on; it is asked for, and made
    by the plugin where it is missing.
    """

    def __init__(self, call: Call, tag: str, bridge: str = "") -> None:
        self._call = call
        self._prefix = f"nv{tag}"
        self._bridge = bridge or f"nrt-{tag}"

    def _ask(self, function: str, **parameters: object) -> Any:
        return result_of(self._call(function, arguments(**parameters)), function)

    def prepare(self) -> None:
        """Have the plugin make the bridge; idempotent."""
        self._ask("create_virtual_bridge", name=self._bridge, uuid=self._bridge)

    def attach(self, netns: int, interfaces: Sequence[InterfaceRequest]) -> tuple[Attached, ...]:
        """Give the namespace every interface, or none."""
        for request in interfaces:
            if request.bandwidth_mbit:
                raise NativertError(
                    f"cannot limit {request.name} to {request.bandwidth_mbit} Mbit/s:"
                    " a network plugin limits nothing",
                    code=Code.UNENFORCEABLE,
                    hint="leave the bandwidth out",
                )
        attached: list[Attached] = []
        with ExitStack() as undo:
            for request in interfaces:
                named_networks.pin(netns, request.link)
                undo.callback(named_networks.unpin, request.link)
                made = self._ask(
                    "create_virtual_interface_in_namespace",
                    internal_name=request.name,
                    nsname=request.link,
                )
                undo.callback(self._delete, request.name, request.link)
                attached.append(self._join(request, made))
            undo.pop_all()
        return tuple(attached)

    def _join(self, request: InterfaceRequest, made: Any) -> Attached:
        try:
            external, mac = str(made["external"]["name"]), str(made["internal"].get("mac") or "")
        except (TypeError, KeyError, AttributeError):
            raise NativertError(
                f"{request.name}: the network plugin does not say what it has made",
                code=Code.NETWORK,
            ) from None
        inside = {"intf_name": request.name, "nsname": request.link}
        if request.mac:
            mac = request.mac.lower()
            self._ask("assign_mac_address_to_interface_in_namespace", **inside, address=mac)
        self._ask("attach_interface_to_bridge", intf_name=external, br_name=self._bridge)
        address = f"{request.address}/{request.prefix}"
        self._ask("assign_address_to_interface_in_namespace", **inside, address=address)
        return Attached(request.name, request.link, 0, mac, request.address)

    def _delete(self, name: str, link: str) -> None:
        try:
            self._ask("delete_virtual_interface_from_namespace", internal_name=name, nsname=link)
        except OSError as e:
            if e.errno not in (errno.ENODEV, errno.ENOENT):
                raise

    def detach(self, attached: Sequence[Attached]) -> None:
        """Have the interfaces deleted and take the names away; safe twice."""
        present = set(self.links())
        failures: list[Exception] = []
        for interface in attached:
            if interface.link not in present:
                continue
            try:
                # Found by its name alone, it goes with its namespace.
                if interface.name:
                    self._delete(interface.name, interface.link)
                named_networks.unpin(interface.link)
            except (OSError, NativertError) as e:
                failures.append(e)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup("several interfaces stay", failures)

    def gone(self, attached: Sequence[Attached]) -> bool:
        """Return whether none of the names is left."""
        return not {interface.link for interface in attached} & set(self.links())

    def publish(self, address: str, ports: Sequence[PortRequest]) -> None:
        """Refuse ports: fog05 has no function for them."""
        if ports:
            raise NativertError(
                f"cannot publish ports of {address}: a network plugin publishes none",
                code=Code.NETWORK,
                hint="leave native.network.ports out, or use the node's own network",
            )

    def withdraw(self, address: str) -> None:
        """Nothing was published."""

    def counters(self, attached: Sequence[Attached]) -> Counters:
        """Refuse: EOPNOTSUPP, the figures stay unknown."""
        raise OSError(errno.EOPNOTSUPP, "a network plugin counts no traffic", attached[0].link)

    def resolver(self) -> str:
        """Return the text of an instance's resolv.conf(5), from the host's."""
        return named_networks.name_servers()

    def links(self) -> tuple[str, ...]:
        """Return the names of this node's pinned namespaces, which are those of its links."""
        return tuple(named_networks.names(self._prefix))

    def present(self) -> bool:
        """The bridge is the plugin's: never ours to remove."""
        return False

    def destroy(self) -> None:
        """Leave the bridge, which is the plugin's; refuse while instances are attached."""
        if left := self.links():
            raise NativertError(
                f"{len(left)} interfaces are attached, among them {left[0]}", code=Code.NETWORK
            )

    def close(self) -> None:
        """There is nothing to finish."""
