"""The bridges of virtual networks: who is on one, what is mended, and that nothing stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from network_hosts import REFUSED_S, Host, Server, ip, open_socket, own_host, refused, wanted

from nativert.errors import NativertError
from nativert.isolation.network import sysctl
from nativert.runtime.network import BridgeNetwork
from nativert.runtime.protocols import Attached

pytestmark = [pytest.mark.root, pytest.mark.netns]

ONE = "6cc2aa30-1dcf-4c93-a57e-433fd0bd498e"
TWO = "d3a1b0c2-7e0c-4a90-8d45-1f7a5a0c3b66"
PORT = 80


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with own_host(tmp_path) as made:
        yield made


def on(host: Host, network: BridgeNetwork, n: int, uuid: str) -> tuple[int, Attached]:
    """An instance with one interface on a virtual network; all have addresses of one subnet."""
    netns = host.netns()
    where = {"address": f"192.168.7.{n + 2}", "prefix": 24, "gateway": "", "network": uuid}
    request = msgspec.structs.replace(wanted(network, n), **where)
    [attached] = network.attach(netns, [request])
    return netns, attached


def test_who_is_on_a_network_reaches_those_who_are_too_and_not_the_host(host: Host) -> None:
    network = host.network()
    (first, _), (second, at) = on(host, network, 0, ONE), on(host, network, 1, ONE)
    (third, _), (own, _) = on(host, network, 2, TWO), host.instance(network, 3)
    with Server(second, "0.0.0.0", PORT) as server:
        server.reached(first, at.address, PORT)
        assert refused(third, at.address, PORT)
        assert refused(own, at.address, PORT)
        assert refused(None, at.address, PORT)
    # The host has an address of that subnet on another link: it does not say so here.
    ip("addr", "add", "192.168.7.1/24", "dev", "up0")
    with Server(None, "0.0.0.0", PORT, udp=True) as server, open_socket(first, udp=True) as client:
        client.sendto(b"anybody?", ("192.168.7.1", PORT))
        server.socket.settimeout(REFUSED_S)
        with pytest.raises(TimeoutError):
            server.socket.recv(100)
    assert network.virtual.present() == sorted([ONE, TWO])
    name = network.virtual.name(ONE)
    assert sysctl.read(f"ipv6/conf/{name}/disable_ipv6") == "1"


def test_what_was_taken_off_is_mended_unless_that_was_asked_for(host: Host) -> None:
    network = host.network()
    (first, one), (second, two) = on(host, network, 0, ONE), on(host, network, 1, ONE)
    name = network.virtual.name(ONE)
    with Server(second, "0.0.0.0", PORT) as server:
        ip("link", "set", two.link, "nomaster")
        assert refused(first, two.address, PORT)
        assert network.mend([one, two], {}) == [f"link {two.link} was taken off its network"]
        server.reached(first, two.address, PORT)
        ip("link", "delete", name)
        mended = network.mend([one, two], {})
        assert mended[0] == f"bridge {name} was removed"
        assert len(mended) == 3
        server.reached(first, two.address, PORT)
        network.virtual.disconnect(two)
        network.virtual.disconnect(two)
        off = msgspec.structs.replace(two, connected=False)
        assert network.mend([one, off], {}) == []
        assert refused(first, two.address, PORT)
        # It was put back by a look that came before the request.
        network.virtual.connect(two)
        assert network.mend([one, off], {}) == [f"link {two.link} was put on its network"]
        assert refused(first, two.address, PORT)
        network.virtual.connect(two)
        server.reached(first, two.address, PORT)


def test_a_network_is_removed_when_nobody_is_on_it(host: Host) -> None:
    network = host.network()
    _, attached = on(host, network, 0, ONE)
    with pytest.raises(NativertError, match="1 interfaces are on it"):
        network.virtual.remove(ONE)
    network.detach([attached])
    network.virtual.remove(ONE)
    assert network.virtual.present() == []
    with pytest.raises(NativertError, match="is not on this node"):
        network.virtual.remove(ONE)


def test_the_nodes_network_takes_the_others_along_and_those_of_no_other_node(host: Host) -> None:
    network, other = host.network(0), host.network(1)
    network.virtual.make(ONE)
    network.virtual.make(TWO)
    other.virtual.make(ONE)
    assert network.virtual.name(ONE) != other.virtual.name(ONE)
    network.destroy()
    assert not network.present()
    assert other.virtual.present() == [ONE]


def test_a_bridge_of_somebody_else_is_not_taken(host: Host) -> None:
    network = host.network()
    name = network.virtual.name(ONE)
    ip("link", "add", name, "type", "bridge")
    ip("link", "set", name, "alias", "mine")
    with pytest.raises(NativertError, match=f"cannot use {name} .*: it is mine"):
        network.virtual.make(ONE)
    network.destroy()
    assert name in ip("-br", "link")
