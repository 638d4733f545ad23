"""What the built-in network refuses before it asks the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nativert.errors import Code, NativertError
from nativert.isolation.network import nftables
from nativert.runtime.network import BridgeNetwork
from nativert.runtime.protocols import InterfaceRequest, NetworkManager, PortRequest


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BridgeNetwork]:
    monkeypatch.setattr(nftables, "run", lambda _: pytest.fail("nft was run"))
    made = BridgeNetwork("a1b2c3", "10.70.4.0/22", tmp_path)
    yield made
    made.close()


def test_names_come_from_the_tag(network: BridgeNetwork) -> None:
    satisfied: NetworkManager = network
    assert satisfied is network
    assert network.bridge == "nrt-a1b2c3"
    assert network.gateway == "10.70.4.1"


@pytest.mark.parametrize("tag", ["", "A1B2C3", "a1b2c", "a1b2c3d", "a1b2c3\n", "-1b2c3"])
def test_a_tag_is_six_hex_digits(tag: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tag"):
        BridgeNetwork(tag, "10.70.4.0/22", tmp_path)


def test_a_subnet_is_a_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="host bits"):
        BridgeNetwork("a1b2c3", "10.70.4.1/22", tmp_path)


@pytest.mark.parametrize("link", ["eth0", "nva1b2c4x", "nva1b2c3" + "9" * 8])
def test_a_link_carries_the_tag_and_fits(network: BridgeNetwork, link: str) -> None:
    with pytest.raises(ValueError, match="link"):
        network.attach(-1, [InterfaceRequest("eth0", link, "10.70.4.2", 22, "10.70.4.1")])


def test_nothing_to_publish_asks_nobody(network: BridgeNetwork) -> None:
    network.publish("10.70.4.2", [])


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (PortRequest("::", 80, 80, "tcp"), "IPv4"),
        (PortRequest("localhost", 80, 80, "tcp"), "IPv4"),
        (PortRequest(None, 80, 80, "sctp"), "only tcp and udp"),
    ],
)
def test_what_cannot_be_published_is_refused(
    network: BridgeNetwork, request_: PortRequest, text: str
) -> None:
    with pytest.raises(NativertError, match=text) as refusal:
        network.publish("10.70.4.2", [request_])
    assert refusal.value.code is Code.NETWORK


@pytest.mark.parametrize("held", [None, "192.0.2.1"])
def test_a_wildcard_and_one_address_are_in_each_others_way(
    network: BridgeNetwork, monkeypatch: pytest.MonkeyPatch, held: str | None
) -> None:
    taken = nftables.Published(held, "tcp", 8080, "10.70.4.9", 80)
    monkeypatch.setattr(nftables.Table, "ports", lambda _: [taken])
    with pytest.raises(NativertError, match=r"10\.70\.4\.9 port 80") as refusal:
        network.publish("10.70.4.2", [PortRequest("0.0.0.0", 8080, 80, "tcp")])
    assert refusal.value.code is Code.PORT_TAKEN


def test_one_port_cannot_be_asked_for_twice(
    network: BridgeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nftables.Table, "ports", lambda _: [])
    twice = [PortRequest(None, 8080, 80, "tcp"), PortRequest("127.0.0.1", 8080, 81, "tcp")]
    with pytest.raises(NativertError) as refusal:
        network.publish("10.70.4.2", twice)
    assert refusal.value.code is Code.PORT_TAKEN
