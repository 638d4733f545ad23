"""The node's network on a real kernel: each test has a network namespace as its host."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from nativert.errors import Code, NativertError
from nativert.isolation import syscalls
from nativert.isolation.network import netlink, nftables, sysctl
from nativert.isolation.network.netns import inside
from nativert.runtime.network import BridgeNetwork
from nativert.runtime.protocols import Attached, InterfaceRequest, NetworkManager, PortRequest

pytestmark = [pytest.mark.root, pytest.mark.netns]

HOST = "198.51.100.1"
OTHER_HOST = "198.51.100.2"
DEADLINE_S = 10.0
REFUSED_S = 0.5


def ip(*words: str, netns: int | None = None) -> str:
    """Run ip(8), in a namespace where one is given."""

    def run() -> str:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
        return done.stdout

    return run() if netns is None else inside(netns, run)


def new_netns() -> int:
    """Return the descriptor of a namespace that lives as long as it."""
    made: list[int] = []

    def make() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.005)


class Host:
    """A host with an uplink to another host, in namespaces of their own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.seed = str(state)
        self.namespaces: list[int] = []
        self.networks: list[BridgeNetwork] = []
        self.other = self.netns()

    def netns(self) -> int:
        self.namespaces.append(new_netns())
        return self.namespaces[-1]

    def network(self, n: int = 0, *, prepare: bool = True) -> BridgeNetwork:
        tag = hashlib.sha256(f"{self.seed}{n}".encode()).hexdigest()[:6]
        network = BridgeNetwork(tag, f"10.{70 + n}.4.0/22", self.state / tag)
        self.networks.append(network)
        if prepare:
            network.prepare()
        return network

    def instance(
        self, network: BridgeNetwork, n: int, *, bandwidth_mbit: int = 0
    ) -> tuple[int, Attached]:
        netns = self.netns()
        [attached] = network.attach(netns, [wanted(network, n, bandwidth_mbit=bandwidth_mbit)])
        return netns, attached


def wanted(
    network: BridgeNetwork, n: int, *, name: str = "eth0", bandwidth_mbit: int = 0
) -> InterfaceRequest:
    base = network.gateway.rsplit(".", 1)[0]
    return InterfaceRequest(
        name=name,
        link=f"nv{network.bridge.removeprefix('nrt-')}{n}",
        address=f"{base}.{n + 2}",
        prefix=22,
        gateway=network.gateway,
        bandwidth_mbit=bandwidth_mbit,
    )


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Move the test's thread into a host of its own: nothing of it can stay on the machine."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.unshare(syscalls.CLONE_NEWNET)
    made = Host(tmp_path)
    try:
        # A new namespace begins with the settings of the machine, which may forward.
        sysctl.write("ipv4/ip_forward", "0")
        ip("link", "set", "lo", "up")
        number = str(made.other)
        peer = ["peer", "name", "up0", "netns", f"/proc/{os.getpid()}/fd/{number}"]
        ip("link", "add", "up0", "type", "veth", *peer)
        ip("addr", "add", f"{HOST}/24", "dev", "up0")
        ip("link", "set", "up0", "up")
        ip("addr", "add", f"{OTHER_HOST}/24", "dev", "up0", netns=made.other)
        ip("link", "set", "up0", "up", netns=made.other)
        yield made
    finally:
        for network in made.networks:
            network.close()
        for netns in made.namespaces:
            os.close(netns)
        syscalls.setns(home, syscalls.CLONE_NEWNET)
        os.close(home)


class Server:
    """A listener in a namespace; the test's thread accepts for it."""

    def __init__(self, netns: int | None, address: str, port: int, *, udp: bool = False) -> None:
        self.socket = open_socket(netns, udp=udp)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((address, port))
        self.socket.settimeout(DEADLINE_S)
        if not udp:
            self.socket.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def reached(self, netns: int | None, address: str, port: int) -> str:
        """Connect from the namespace; return the client's address as the server sees it."""
        with open_socket(netns) as client:
            client.connect((address, port))
            served, peer = self.socket.accept()
            with served:
                served.settimeout(DEADLINE_S)
                client.sendall(b"ping")
                assert served.recv(4) == b"ping"
                served.sendall(b"pong")
                assert client.recv(4) == b"pong"
        return str(peer[0])


def open_socket(netns: int | None, *, udp: bool = False) -> socket.socket:
    # A socket belongs to the namespace in which it was made, whoever uses it.
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    make: Callable[[], socket.socket] = lambda: socket.socket(socket.AF_INET, kind)  # noqa: E731
    made = make() if netns is None else inside(netns, make)
    made.settimeout(DEADLINE_S)
    return made


def refused(netns: int | None, address: str, port: int) -> bool:
    with open_socket(netns) as client:
        client.settimeout(REFUSED_S)
        try:
            client.connect((address, port))
        except OSError:
            return True
    return False


def links_in(netns: int) -> list[str]:
    return inside(netns, lambda: [name for _, name in socket.if_nameindex()])


def nft_list(table: str) -> str:
    arguments = ["nft", "list", "table", "ip", table]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def tables() -> list[str]:
    return [e["table"]["name"] for e in nftables.listing("ruleset") if "table" in e]


def fail(monkeypatch: pytest.MonkeyPatch, what: str, *, skip: int = 0) -> None:
    """Let the kernel refuse the request whose description starts so, after `skip` good ones."""
    real = netlink.Netlink.transact
    left = [skip]

    def transact(self: netlink.Netlink, requests: Sequence[netlink.Request]) -> list[list[bytes]]:
        if any(request.what.startswith(what) for request in requests):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOBUFS, f"{what}: injected")
        return real(self, requests)

    monkeypatch.setattr(netlink.Netlink, "transact", transact)


def test_an_instance_is_reached_from_the_host_and_reaches_out(host: Host) -> None:
    network = host.network()
    netns, attached = host.instance(network, 0)
    with Server(netns, "0.0.0.0", 80) as server:
        assert server.reached(None, attached.address, 80) == network.gateway
        # The other host has no route into the pool.
        assert refused(host.other, attached.address, 80)
    with Server(host.other, OTHER_HOST, 7000) as server:
        assert server.reached(netns, OTHER_HOST, 7000) == HOST
    with Server(None, HOST, 7001) as server:
        assert server.reached(netns, HOST, 7001) == attached.address


def test_the_interface_is_as_asked_for(host: Host) -> None:
    network = host.network()
    netns = host.netns()
    request = InterfaceRequest(
        name="wan0",
        link=f"nv{network.bridge[4:]}7",
        address="10.70.5.9",
        prefix=22,
        gateway=network.gateway,
        mac="02:11:22:33:44:55",
    )
    second = wanted(network, 8, name="eth1")
    attached = network.attach(netns, [request, second])
    assert [a.name for a in attached] == ["wan0", "eth1"]
    assert attached[0].mac == "02:11:22:33:44:55"
    assert socket.if_nametoindex(request.link) == attached[0].index
    shown = ip("addr", "show", "dev", "wan0", netns=netns)
    assert "02:11:22:33:44:55" in shown
    assert "inet 10.70.5.9/22 brd 10.70.7.255" in shown
    assert ",UP" in shown
    routes = ip("route", "show", "default", netns=netns).splitlines()
    assert f"default via {network.gateway} dev wan0" in routes[0]
    assert f"default via {network.gateway} dev eth1" in routes[1]
    assert attached[1].mac in ip("link", "show", "dev", "eth1", netns=netns)
    assert inside(netns, lambda: sysctl.read("ipv6/conf/wan0/accept_ra")) == "0"
    assert sysctl.read(f"ipv6/conf/{network.bridge}/disable_ipv6") == "1"
    assert network.links() == (request.link, second.link)


def test_a_namespace_without_gateway_has_no_default_route(host: Host) -> None:
    network = host.network()
    netns = host.netns()
    request = InterfaceRequest("eth0", f"nv{network.bridge[4:]}0", "10.70.4.9", 22, gateway="")
    network.attach(netns, [request])
    assert ip("route", "show", "default", netns=netns) == ""


def test_siblings_see_each_other_with_their_own_addresses(host: Host) -> None:
    network = host.network()
    first, attached = host.instance(network, 0)
    second, sibling = host.instance(network, 1)
    with Server(first, "0.0.0.0", 80) as server:
        assert server.reached(second, attached.address, 80) == sibling.address


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


def test_the_hosts_loopback_is_out_of_reach(host: Host) -> None:
    network = host.network()
    netns, _ = host.instance(network, 0)
    # A root inside with its capabilities could do this.
    inside(netns, lambda: sysctl.write("ipv4/conf/eth0/route_localnet", "1"))
    ip("route", "add", "127.0.0.2/32", "via", network.gateway, "dev", "eth0", netns=netns)
    with Server(None, "127.0.0.2", 7000) as server:
        assert refused(netns, "127.0.0.2", 7000)
        # The same packets pass without the rule: it is the rule that holds them.
        nftables.run(f"flush chain ip nativert_{network.bridge[4:]} martians\n")
        server.reached(netns, "127.0.0.2", 7000)


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


@pytest.mark.parametrize(
    ("what", "skip"),
    [
        ("add veth", 0),
        ("add veth", 1),
        ("set hairpin", 0),
        ("set hairpin", 1),
        ("set tbf", 0),
        ("set tbf", 1),
        ("set link up", 0),
    ],
)
def test_attach_is_all_or_none(
    host: Host, monkeypatch: pytest.MonkeyPatch, what: str, skip: int
) -> None:
    network = host.network()
    netns = host.netns()
    requests = [wanted(network, n, name=f"eth{n}", bandwidth_mbit=10) for n in range(2)]
    fail(monkeypatch, what, skip=skip)
    with pytest.raises(OSError, match="injected"):
        network.attach(netns, requests)
    monkeypatch.undo()
    assert links_in(netns) == ["lo"]
    assert network.links() == ()
    network.attach(netns, requests)


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (InterfaceRequest("eth0", "TAG1", "10.70.4.9", 22, "10.70.4.1"), "add veth"),
        (InterfaceRequest("eth1", "TAG0", "10.70.4.9", 22, "10.70.4.1"), "File exists"),
        (InterfaceRequest("eth1", "TAG1", "10.70.4.2", 22, "192.0.2.1"), "default route"),
        (InterfaceRequest("lo", "TAG1", "10.70.4.9", 22, "10.70.4.1"), "add veth"),
    ],
)
def test_what_the_kernel_refuses_leaves_nothing(
    host: Host, broken: InterfaceRequest, error: str
) -> None:
    network = host.network()
    netns = host.netns()
    tag = f"nv{network.bridge[4:]}"
    broken = InterfaceRequest(
        broken.name,
        broken.link.replace("TAG", tag),
        broken.address,
        broken.prefix,
        broken.gateway,
    )
    with pytest.raises(OSError, match=error):
        network.attach(netns, [wanted(network, 0), broken])
    assert links_in(netns) == ["lo"]
    assert network.links() == ()


def test_a_link_of_another_owner_is_neither_replaced_nor_removed(host: Host) -> None:
    network = host.network()
    request = wanted(network, 0)
    ip("link", "add", request.link, "type", "veth", "peer", "name", "foreign")
    with pytest.raises(FileExistsError):
        network.attach(host.netns(), [request])
    assert socket.if_nametoindex(request.link)
    with pytest.raises(ValueError, match="up0"):
        network.attach(host.netns(), [InterfaceRequest("eth0", "up0", "10.70.4.9", 22, "")])
    network.detach([Attached("eth0", "up0", socket.if_nametoindex("up0"), "", "10.70.4.9")])
    assert f"inet {HOST}" in ip("addr", "show", "dev", "up0", "up")


def test_attach_without_prepare_is_refused(host: Host) -> None:
    network = host.network(prepare=False)
    with pytest.raises(OSError, match="no such bridge"):
        network.attach(host.netns(), [wanted(network, 0)])


def test_detach_cuts_at_once_and_deletes_soon(host: Host) -> None:
    network = host.network()
    netns, attached = host.instance(network, 0)
    other, sibling = host.instance(network, 1)
    with Server(netns, "0.0.0.0", 80) as server, Server(other, "0.0.0.0", 80) as untouched:
        server.reached(None, attached.address, 80)
        assert not network.gone([attached])
        network.detach([attached])
        assert refused(None, attached.address, 80)
        wait_until(lambda: network.gone([attached]), "link deleted")
        assert links_in(netns) == ["lo"]
        network.detach([attached])
        untouched.reached(None, sibling.address, 80)
    # Found by name, as after the loss of the record.
    network.detach([Attached("", sibling.link, 0, "", "")])
    wait_until(lambda: network.gone([attached, sibling]), "link deleted")


def test_close_waits_for_the_deletions(host: Host) -> None:
    network = host.network()
    _, attached = host.instance(network, 0)
    network.detach([attached])
    network.close()
    assert attached.link not in [name for _, name in socket.if_nameindex()]
    network.close()


def test_a_refused_deletion_is_told_and_can_be_repeated(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = host.network()
    _, attached = host.instance(network, 0)
    fail(monkeypatch, "delete group")
    network.detach([attached])
    with pytest.raises(OSError, match="injected"):
        network.destroy()
    monkeypatch.undo()
    assert not network.gone([attached])
    network.destroy()
    assert network.gone([attached])


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


def test_counters_are_the_instances(host: Host) -> None:
    network = host.network()
    netns, attached = host.instance(network, 0)
    before = network.counters([attached])
    with open_socket(netns, udp=True) as sender, Server(None, HOST, 9000, udp=True) as sink:
        for _ in range(20):
            sender.sendto(bytes(1000), (HOST, 9000))
        for _ in range(20):
            sink.socket.recv(2000)
    after = network.counters([attached])
    assert after.tx_bytes - before.tx_bytes >= 20 * 1000
    assert after.tx_packets - before.tx_packets >= 20
    assert after.rx_bytes - before.rx_bytes < 10 * 1000
    assert network.counters([]).rx_bytes == 0
    network.detach([attached])
    wait_until(lambda: network.gone([attached]), "link deleted")
    with pytest.raises(OSError, match="get statistics"):
        network.counters([attached])


@pytest.mark.parametrize("outwards", [False, True])
def test_bandwidth_is_limited_both_ways(host: Host, outwards: bool) -> None:
    network = host.network()
    netns, attached = host.instance(network, 0, bandwidth_mbit=8)
    source, sink, address = (
        (netns, None, network.gateway) if outwards else (None, netns, attached.address)
    )
    payload = bytes(1_000_000)
    with Server(sink, "0.0.0.0", 9000) as server, open_socket(source) as client:
        client.connect((address, 9000))
        served, _ = server.socket.accept()
        with served:
            served.settimeout(DEADLINE_S)
            started = time.monotonic()
            thread = threading.Thread(target=lambda: client.sendall(payload))
            thread.start()
            received = 0
            while received < len(payload):
                received += len(served.recv(1 << 16))
            took_s = time.monotonic() - started
            thread.join()
    # 8 Mbit/s are 1 MB/s.
    assert 0.8 < took_s < 5.0


def test_a_kernel_without_tbf_refuses_a_bandwidth(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = host.network()
    netns = host.netns()
    real = netlink.Netlink.transact

    def transact(self: netlink.Netlink, requests: Sequence[netlink.Request]) -> list[list[bytes]]:
        # As a kernel without the discipline answers to its name.
        renamed = [
            netlink.Request(r.kind, r.flags, r.body.replace(b"tbf\0", b"tbx\0"), r.what)
            for r in requests
        ]
        return real(self, renamed)

    monkeypatch.setattr(netlink.Netlink, "transact", transact)
    with pytest.raises(NativertError, match="tbf") as refusal:
        network.attach(netns, [wanted(network, 0, bandwidth_mbit=8)])
    assert refusal.value.code is Code.UNENFORCEABLE
    assert network.links() == ()


def test_many_threads_attach_and_detach_at_once(host: Host) -> None:
    network: NetworkManager = host.network()
    bridge = host.networks[0]
    namespaces = [host.netns() for _ in range(24)]
    failures: list[BaseException] = []
    taken: list[Attached] = []

    def work(first: int) -> None:
        try:
            for n in range(first, 24, 6):
                attached = network.attach(namespaces[n], [wanted(bridge, n)])
                taken.extend(attached)
                network.detach(attached)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(taken) == 24
    wait_until(lambda: network.gone(taken), "links deleted")
    assert network.links() == ()


def test_it_works_where_an_event_loop_runs(host: Host) -> None:
    network = host.network()

    async def body() -> Attached:
        return host.instance(network, 0)[1]

    attached = asyncio.run(body())
    assert socket.if_nametoindex(attached.link) == attached.index


def test_cycles_leave_neither_descriptors_nor_links(host: Host) -> None:
    network = host.network()
    netns = host.netns()

    def cycle() -> None:
        attached = network.attach(netns, [wanted(network, 0)])
        network.publish(attached[0].address, [PortRequest(None, 8080, 80, "tcp")])
        network.withdraw(attached[0].address)
        network.detach(attached)
        wait_until(lambda: network.gone(attached), "link deleted")

    cycle()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        cycle()
    assert len(os.listdir("/proc/self/fd")) == before
    assert network.links() == ()
    assert network.published() == ()


def test_a_foreign_drop_is_found_with_the_rule_that_mends_it(host: Host) -> None:
    network = host.network()
    netns, attached = host.instance(network, 0)
    assert network.foreign_forward_drops() == []
    nftables.run(
        "add table ip filter\n"
        "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }\n"
    )
    network.publish(attached.address, [PortRequest(None, 8080, 80, "tcp")])
    with Server(netns, "0.0.0.0", 80) as server:
        assert refused(host.other, HOST, 8080)
        [drop] = network.foreign_forward_drops()
        assert "ip filter FORWARD" in drop
        for command in drop.split("mend: ")[1].split("; "):
            subprocess.run(command.split(), check=True)
        assert network.foreign_forward_drops() == []
        server.reached(host.other, HOST, 8080)
