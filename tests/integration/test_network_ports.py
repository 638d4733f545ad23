"""Published ports on a real kernel: where they lead, and what is refused."""

from __future__ import annotations

import select

import pytest
from network_hosts import HOST, OTHER_HOST, Host, Server, open_socket, refused

from nativert.errors import Code, NativertError
from nativert.isolation.network import nftables
from nativert.runtime.protocols import PortRequest

pytestmark = [pytest.mark.root, pytest.mark.netns]


def test_a_published_port_is_reached_from_everywhere(host: Host) -> None:
    network = host.network()
    netns, attached = host.instance(network, 0)
    sibling, _ = host.instance(network, 1)
    with Server(netns, "0.0.0.0", 80) as server:
        assert refused(None, HOST, 8080)
        network.publish(attached.address, [PortRequest(None, 8080, 80, "tcp")])
        assert server.reached(None, HOST, 8080) == HOST
        assert server.reached(None, "127.0.0.1", 8080) == network.gateway
        assert server.reached(host.other, HOST, 8080) == OTHER_HOST
        assert server.reached(sibling, HOST, 8080) == network.gateway
        assert server.reached(netns, HOST, 8080) == network.gateway
        assert server.reached(sibling, network.gateway, 8080) == network.gateway
        network.withdraw(attached.address)
        assert refused(None, "127.0.0.1", 8080)
        assert refused(host.other, HOST, 8080)
        network.withdraw(attached.address)


def test_a_port_published_on_one_address_is_not_on_the_others(host: Host) -> None:
    network = host.network()
    netns, attached = host.instance(network, 0)
    with Server(netns, "0.0.0.0", 80) as server:
        network.publish(attached.address, [PortRequest("127.0.0.1", 8080, 80, "tcp")])
        assert server.reached(None, "127.0.0.1", 8080) == network.gateway
        assert refused(host.other, HOST, 8080)
        assert refused(None, HOST, 8080)


def test_publishing_twice_is_once(host: Host) -> None:
    network = host.network()
    ports = [PortRequest(None, 8080, 80, "tcp"), PortRequest(HOST, 5353, 53, "udp")]
    network.publish("10.70.4.9", ports)
    network.publish("10.70.4.9", ports)
    assert len(network.published()) == 2


@pytest.mark.parametrize(
    ("held", "asked"),
    [((None, 8080), (None, 8080)), ((HOST, 8080), (None, 8080)), ((None, 8080), (HOST, 8080))],
)
def test_a_port_that_leads_elsewhere_is_refused(
    host: Host, held: tuple[str | None, int], asked: tuple[str | None, int]
) -> None:
    network = host.network()
    network.publish("10.70.4.9", [PortRequest(*held, 80, "tcp")])
    with pytest.raises(NativertError, match=r"10\.70\.4\.9") as refusal:
        network.publish(
            "10.70.4.10", [PortRequest(None, 9090, 80, "tcp"), PortRequest(*asked, 80, "tcp")]
        )
    assert refusal.value.code is Code.PORT_TAKEN
    # The same number of the other protocol is another port.
    network.publish("10.70.4.10", [PortRequest(*asked, 80, "udp")])
    assert [p.protocol for p in network.published() if p.address == "10.70.4.10"] == ["udp"]


def test_a_port_taken_between_look_and_transaction_is_refused(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = host.network()
    network.publish("10.70.4.9", [PortRequest(None, 8080, 80, "tcp")])
    monkeypatch.setattr(nftables.Table, "ports", lambda _: [])
    with pytest.raises(NativertError) as refusal:
        network.publish(
            "10.70.4.10", [PortRequest(None, 9090, 80, "tcp"), PortRequest(None, 8080, 80, "tcp")]
        )
    assert refusal.value.code is Code.PORT_TAKEN
    monkeypatch.undo()
    assert [p.address for p in network.published()] == ["10.70.4.9"]


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", HOST])
def test_a_port_that_the_host_listens_on_is_refused(host: Host, address: str, udp: bool) -> None:
    network = host.network()
    protocol = "udp" if udp else "tcp"
    with Server(None, address, 8080, udp=udp):
        with pytest.raises(NativertError, match="listens") as refusal:
            network.publish(
                "10.70.4.9",
                [PortRequest(None, 9090, 80, protocol), PortRequest(None, 8080, 80, protocol)],
            )
        assert refusal.value.code is Code.PORT_TAKEN
        assert network.published() == ()
    network.publish("10.70.4.9", [PortRequest(None, 8080, 80, protocol)])


def test_a_port_on_a_foreign_address_is_refused(host: Host) -> None:
    network = host.network()
    with pytest.raises(NativertError, match="no address"):
        network.publish("10.70.4.9", [PortRequest("203.0.113.9", 8080, 80, "tcp")])
    with pytest.raises(NativertError, match="IPv4"):
        network.publish("10.70.4.9", [PortRequest("::1", 8080, 80, "tcp")])


def test_a_withdrawn_udp_port_ends_the_flow_and_can_lead_elsewhere(host: Host) -> None:
    network = host.network()
    first, one = host.instance(network, 0)
    second, two = host.instance(network, 1)
    request = [PortRequest(None, 5353, 53, "udp")]
    with (
        Server(first, "0.0.0.0", 53, udp=True) as old,
        Server(second, "0.0.0.0", 53, udp=True) as new,
        open_socket(host.other, udp=True) as client,
    ):
        client.connect((HOST, 5353))
        network.publish(one.address, request)
        client.send(b"one")
        data, peer = old.socket.recvfrom(16)
        assert (data, peer[0]) == (b"one", OTHER_HOST)
        old.socket.sendto(b"answer", peer)
        assert client.recv(16) == b"answer"
        network.withdraw(one.address)
        network.publish(two.address, request)
        # The same client port: without forgetting the flow this would go to the old address.
        client.send(b"two")
        assert new.socket.recv(16) == b"two"
        assert not select.select([old.socket], [], [], 0)[0]


def test_a_udp_client_that_began_before_the_port_was_published_is_served(host: Host) -> None:
    network = host.network()
    netns, attached = host.instance(network, 0)
    with (
        Server(netns, "0.0.0.0", 53, udp=True) as server,
        Server(host.other, OTHER_HOST, 5353, udp=True) as elsewhere,
        open_socket(host.other, udp=True) as client,
        open_socket(netns, udp=True) as passing,
    ):
        client.bind((OTHER_HOST, 0))
        client.sendto(b"early", (HOST, 5353))
        passing.sendto(b"question", (OTHER_HOST, 5353))
        _, asker = elsewhere.socket.recvfrom(16)
        network.publish(attached.address, [PortRequest(None, 5353, 53, "udp")])
        client.sendto(b"late", (HOST, 5353))
        assert server.socket.recv(16) == b"late"
        # A flow to the same port of another host, only passed on, is still translated back.
        elsewhere.socket.sendto(b"answer", asker)
        assert passing.recv(16) == b"answer"
