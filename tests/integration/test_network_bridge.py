"""What a node's network sets up on its host, mends, shares with other nodes and takes back."""

from __future__ import annotations

import errno
import socket
import subprocess

import pytest
from network_hosts import HOST, OTHER_HOST, Host, Server, fail, ip

from nativert.errors import NativertError
from nativert.isolation.network import nftables, sysctl
from nativert.runtime.network import BridgeNetwork
from nativert.runtime.protocols import PortRequest

pytestmark = [pytest.mark.root, pytest.mark.netns]


def nft_list(table: str) -> str:
    arguments = ["nft", "list", "table", "ip", table]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def tables() -> list[str]:
    return [e["table"]["name"] for e in nftables.listing("ruleset") if "table" in e]


def test_prepare_twice_runs_no_process_the_second_time(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = host.network()
    monkeypatch.setattr(nftables, "run", lambda *_: pytest.fail("nft was run"))
    network.prepare()


def test_prepare_mends_what_was_flushed_and_keeps_ports_over_an_upgrade(host: Host) -> None:
    network = host.network()
    name = f"nativert_{network.bridge[4:]}"
    network.publish("10.70.4.9", [PortRequest(None, 8080, 80, "tcp")])
    listing = nft_list(name)
    older = listing.replace('comment "nativert ', 'comment "nativert 0')
    assert older != listing
    nftables.run(f"delete table ip {name}\n{older}")
    network.prepare()
    assert nft_list(name) == listing
    nftables.run("flush ruleset\n")
    ip("addr", "flush", "dev", network.bridge)
    sysctl.write("ipv4/ip_forward", "0")
    network.prepare()
    assert network.published() == ()
    assert sysctl.read("ipv4/ip_forward") == "1"
    netns, attached = host.instance(network, 0)
    with Server(netns, "0.0.0.0", 80) as server:
        server.reached(None, attached.address, 80)


def test_a_foreign_link_of_the_bridges_name_is_not_taken(host: Host) -> None:
    network = host.network(prepare=False)
    ip("link", "add", network.bridge, "type", "veth", "peer", "name", "foreign")
    with pytest.raises(NativertError, match="not a bridge"):
        network.prepare()
    assert tables() == []
    assert socket.if_nametoindex(network.bridge)


@pytest.mark.parametrize("what", ["add bridge", "add address", "set link up", "list bridges"])
def test_prepare_is_all_or_none(host: Host, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    network = host.network(prepare=False)
    fail(monkeypatch, what)
    with pytest.raises(OSError, match="injected"):
        network.prepare()
    monkeypatch.undo()
    nothing_is_left(network)
    network.prepare()


@pytest.mark.parametrize("name", ["route_localnet", "ip_forward", "disable_ipv6"])
def test_prepare_takes_back_all_when_a_sysctl_is_refused(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    network = host.network(prepare=False)
    real = sysctl.write

    def write(path: str, value: str) -> None:
        if path.endswith(name) and value == "1":
            raise OSError(errno.EROFS, "injected")
        real(path, value)

    monkeypatch.setattr(sysctl, "write", write)
    with pytest.raises(OSError, match="injected"):
        network.prepare()
    nothing_is_left(network)


def test_prepare_without_nft_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    network = host.network(prepare=False)
    monkeypatch.setattr(nftables, "PATH", "/nonexistent")
    with pytest.raises(FileNotFoundError, match="nft is not installed"):
        network.prepare()
    monkeypatch.undo()
    nothing_is_left(network)


def nothing_is_left(network: BridgeNetwork) -> None:
    assert tables() == []
    assert sorted(name for _, name in socket.if_nameindex()) == ["lo", "up0"]
    assert sysctl.read("ipv4/ip_forward") == "0"
    assert network.links() == ()


def test_destroy_refuses_while_attached_and_then_leaves_nothing(host: Host) -> None:
    network = host.network()
    netns, attached = host.instance(network, 0)
    with pytest.raises(NativertError, match=attached.link):
        network.destroy()
    with Server(netns, "0.0.0.0", 80) as server:
        server.reached(None, attached.address, 80)
    network.detach([attached])
    network.destroy()
    nothing_is_left(network)
    network.destroy()


def test_destroy_keeps_forwarding_that_was_on_before(host: Host) -> None:
    sysctl.write("ipv4/ip_forward", "1")
    network = host.network()
    network.destroy()
    assert sysctl.read("ipv4/ip_forward") == "1"


def test_destroy_keeps_forwarding_for_a_bridge_that_came_later(host: Host) -> None:
    network = host.network()
    ip("link", "add", "docker0", "type", "bridge")
    network.destroy()
    assert sysctl.read("ipv4/ip_forward") == "1"


def test_two_nodes_do_not_know_of_each_other(host: Host) -> None:
    first, second = host.network(0), host.network(1)
    _, gone = host.instance(first, 0)
    netns, attached = host.instance(second, 0)
    first.publish(gone.address, [PortRequest(None, 8080, 80, "tcp")])
    second.publish(attached.address, [PortRequest(None, 8081, 80, "tcp")])
    assert first.links() == (gone.link,)
    before = nft_list(f"nativert_{second.bridge[4:]}")
    first.withdraw(attached.address)
    first.detach([gone, attached])
    first.destroy()
    assert nft_list(f"nativert_{second.bridge[4:]}") == before
    with Server(netns, "0.0.0.0", 80) as server:
        server.reached(host.other, HOST, 8081)
    with Server(host.other, OTHER_HOST, 7000) as server:
        server.reached(netns, OTHER_HOST, 7000)
    # The first turned forwarding on; the second, the last to leave, turns it off.
    second.detach([attached])
    second.destroy()
    nothing_is_left(second)
