"""Instances on the node's bridge: attached as asked for or not at all, detached at once."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Sequence

import pytest
from network_hosts import HOST, Host, Server, fail, ip, links_in, refused, wait_until, wanted

from nativert.errors import Code, NativertError
from nativert.isolation.network import netlink, sysctl
from nativert.isolation.network.netns import inside
from nativert.runtime.protocols import Attached, InterfaceRequest, NetworkManager, PortRequest

pytestmark = [pytest.mark.root, pytest.mark.netns]


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
