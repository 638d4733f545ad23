"""Who reaches whom over the overlay, what an address takes along, and what is kept out."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from joined_hosts import Joined, joined, tell_each_other
from network_hosts import DEADLINE_S, REFUSED_S, Server, fail, ip, open_socket, refused

from nativert.errors import NativertError
from nativert.isolation.network import nftables
from nativert.isolation.network.netns import inside

pytestmark = [pytest.mark.root, pytest.mark.netns]

VNI, PORT = 7447, 4789


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Joined]]:
    with joined(tmp_path, 3) as made:
        yield made


def test_instances_of_two_nodes_see_each_other_as_they_are(hosts: list[Joined]) -> None:
    first, second, third = hosts
    one, at_one = first.instance(0)
    two, at_two = second.instance(0)
    with Server(two, "0.0.0.0", 80) as server:
        assert server.reached(one, at_two.address, 80) == at_one.address
        # A node itself has the address of its bridge there.
        assert server.reached(third.netns, at_two.address, 80) == third.network.gateway
    with Server(one, "0.0.0.0", 80) as server:
        assert server.reached(two, at_one.address, 80) == at_two.address
    # Out of the overlay everybody goes by its own node.
    with Server(third.netns, third.uplink, 7000) as server:
        assert server.reached(one, third.uplink, 7000) == first.uplink


def test_siblings_of_one_node_see_each_other_through_it(hosts: list[Joined]) -> None:
    one, at_one = hosts[0].instance(0)
    two, at_two = hosts[0].instance(1)
    with Server(two, "0.0.0.0", 80) as server:
        assert server.reached(one, at_two.address, 80) == at_one.address


def test_what_is_larger_than_a_frame_arrives(hosts: list[Joined]) -> None:
    one, _ = hosts[0].instance(0)
    two, at_two = hosts[1].instance(0)
    data = bytes(range(256)) * 4096
    with Server(two, "0.0.0.0", 80) as server, open_socket(one) as client:
        client.connect((at_two.address, 80))
        served, _ = server.socket.accept()
        with served:
            client.settimeout(None)
            sender = threading.Thread(target=client.sendall, args=(data,))
            sender.start()
            got = b""
            while len(got) < len(data):
                part = served.recv(1 << 16)
                assert part
                got += part
            sender.join()
    assert got == data
    with Server(two, "0.0.0.0", 81, udp=True) as server, open_socket(one, udp=True) as client:
        client.sendto(data[:8000], (at_two.address, 81))
        assert server.socket.recv(1 << 16) == data[:8000]
    link = ip("-d", "link", "show", hosts[0].network.overlay.link, netns=hosts[0].netns)
    assert "mtu 1450" in link
    assert "nolearning" in link


def test_an_address_goes_with_its_instance(hosts: list[Joined]) -> None:
    first, second, third = hosts
    sibling, at_sibling = first.instance(1)
    client, at_client = third.instance(0)
    old, attached = first.instance(0)
    with Server(old, "0.0.0.0", 80) as server:
        assert server.reached(sibling, attached.address, 80) == at_sibling.address
        assert server.reached(client, attached.address, 80) == at_client.address
    first.do(lambda: first.network.detach([attached]))
    new, moved = second.instance(0, attached.address)
    assert moved.mac == attached.mac
    second.here = {attached.address: 1}
    tell_each_other(hosts)
    neighbour, at_neighbour = second.instance(1)
    with Server(new, "0.0.0.0", 80) as server:
        for netns, address in (
            (sibling, at_sibling.address),
            (client, at_client.address),
            (neighbour, at_neighbour.address),
            (second.netns, second.network.gateway),
            (third.netns, third.network.gateway),
        ):
            assert server.reached(netns, attached.address, 80) == address
    # It reaches all of them too, and the world as its node does.
    with Server(sibling, "0.0.0.0", 80) as server:
        assert server.reached(new, at_sibling.address, 80) == attached.address
    with Server(third.netns, third.uplink, 7000) as server:
        assert server.reached(new, third.uplink, 7000) == second.uplink
    # And home again, which is the newer word.
    second.do(lambda: second.network.detach([moved]))
    back, _ = first.instance(2, attached.address)
    first.here = {attached.address: 2}
    tell_each_other(hosts)
    second.here = {}
    with Server(back, "0.0.0.0", 80) as server:
        for netns in (sibling, client, neighbour):
            assert server.reached(netns, attached.address, 80)


def test_who_was_there_before_its_node_was_joined_is_told_the_way(hosts: list[Joined]) -> None:
    first, second, _ = hosts
    first.do(first.network.overlay.forget)
    before, at_before = first.instance(0)
    _, attached = first.instance(1)
    assert "10.71.4.2/22" in ip("addr", "show", "eth0", netns=before)
    tell_each_other(hosts)
    first.do(lambda: first.network.detach([attached]))
    new, _ = second.instance(1, attached.address)
    second.here = {attached.address: 1}
    tell_each_other(hosts)
    with Server(new, "0.0.0.0", 80) as server:
        assert server.reached(before, attached.address, 80) == at_before.address


def test_a_node_that_gets_another_address_is_reached_at_it(hosts: list[Joined]) -> None:
    first, second, _ = hosts
    one, _ = first.instance(0)
    two, at_two = second.instance(0)
    with Server(two, "0.0.0.0", 80) as server:
        assert server.reached(one, at_two.address, 80)
    ip("addr", "del", f"{second.uplink}/24", "dev", "up0", netns=second.netns)
    second.uplink = "198.51.100.22"
    ip("addr", "add", f"{second.uplink}/24", "dev", "up0", netns=second.netns)
    tell_each_other(hosts)
    with Server(two, "0.0.0.0", 80) as server:
        assert server.reached(one, at_two.address, 80)
    entries = ip("-d", "link", "show", second.network.overlay.link, netns=second.netns)
    assert f"local {second.uplink}" in entries


def test_frames_of_others_are_kept_out(hosts: list[Joined]) -> None:
    first, second, third = hosts
    one, at_one = first.instance(0)
    inner = udp_frame(second.network.gateway, at_one.address, 80)
    frame = struct.pack("!II", 0x08 << 24, VNI << 8) + first_mac(first) + inner

    def sent(netns: int, within_s: float = REFUSED_S) -> bool:
        with Server(one, "0.0.0.0", 80, udp=True) as server, open_socket(netns, udp=True) as out:
            server.socket.settimeout(within_s)
            out.sendto(frame, (first.uplink, PORT))
            try:
                return server.socket.recv(100) == b"hello"
            except TimeoutError:
                return False

    # From another node such a frame is what the overlay is made of.
    assert sent(second.netns, DEADLINE_S)
    # An instance there has its node's address on its way here.
    inside_second, _ = second.instance(0)
    assert not sent(inside_second)
    assert not sent(one)
    first.network.overlay.keep(first.plan([second]))
    first.do(first.network.prepare)
    assert not sent(third.netns)
    # It is the table that holds them.
    first.do(lambda: nftables.run(f"delete table ip nativert_{first.tag}_vx\n"))
    assert sent(third.netns, DEADLINE_S)
    assert first.do(first.network.overlay.ensure) != []
    assert not sent(third.netns)


def first_mac(host: Joined) -> bytes:
    text = ip("link", "show", host.network.overlay.link, netns=host.netns)
    mac = text.split("link/ether ")[1].split()[0]
    return bytes.fromhex(mac.replace(":", "")) + b"\x02\0\0\0\0\1" + b"\x08\x00"


def udp_frame(source: str, target: str, port: int) -> bytes:
    data = b"hello"
    udp = struct.pack("!HHHH", 9, port, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~(total + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", total) + head[12:] + udp


def test_the_overlay_leads_to_instances_only(hosts: list[Joined]) -> None:
    first, second, third = hosts
    one, at_one = first.instance(0)
    link = first.network.overlay.link
    way = ["via", second.network.gateway, "dev", link, "onlink", "src", first.network.gateway]
    ip("route", "add", f"{third.uplink}/32", *way, netns=first.netns)
    # Sent to another node by force, it is not sent on into the network of that node.
    with Server(third.netns, third.uplink, 7000) as server:
        assert refused(one, third.uplink, 7000)
        second.do(lambda: nftables.run(f"delete table ip nativert_{second.tag}_vx\n"))
        assert server.reached(one, third.uplink, 7000) == at_one.address


def test_what_is_taken_away_is_put_back(hosts: list[Joined]) -> None:
    first, second, _ = hosts
    one, _ = first.instance(0)
    two, at_two = second.instance(0)
    link = first.network.overlay.link
    mend = lambda: first.do(lambda: first.network.mend([], {}))  # noqa: E731
    assert mend() == []
    ip("link", "del", link, netns=first.netns)
    assert f"tunnel {link} was removed" in mend()
    ip("link", "set", link, "down", netns=first.netns)
    assert f"tunnel {link} was down" in mend()
    ip("route", "del", second.subnet, netns=first.netns)
    assert mend() == [f"route to {second.subnet} was missing"]
    assert mend() == []
    with Server(two, "0.0.0.0", 80) as server:
        server.reached(one, at_two.address, 80)


def test_all_of_it_goes_with_the_nodes_network(hosts: list[Joined]) -> None:
    first = hosts[0]
    before = ip("route", "show", netns=first.netns)
    assert "proto 183" in before
    first.do(first.network.destroy)
    assert not first.do(first.network.present)
    assert ip("route", "show", netns=first.netns).splitlines() == [
        f"198.51.100.0/24 dev up0 proto kernel scope link src {first.uplink} "
    ]
    tables = first.do(lambda: subprocess.run(["nft", "list", "tables"], capture_output=True))
    assert tables.stdout == b""
    first.do(first.network.destroy)
    first.do(first.network.prepare)
    assert ip("route", "show", netns=first.netns) == before


def test_a_vni_that_is_taken_is_told(hosts: list[Joined]) -> None:
    first = hosts[0]
    first.do(first.network.destroy)
    other = ["type", "vxlan", "id", str(VNI), "dstport", str(PORT), "local", first.uplink]
    ip("link", "add", "other", *other, netns=first.netns)
    with pytest.raises(NativertError, match="another link of this host has VNI 7447"):
        first.do(first.network.prepare)
    assert "nrt-" not in ip("link", "show", netns=first.netns)


def test_what_fails_half_way_leaves_nothing(
    hosts: list[Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hosts[0]
    for step in ("add vxlan", "set neighbour", "list routes", "set route", "set link up"):
        first.do(first.network.destroy)
        with monkeypatch.context() as patched:
            fail(patched, step, skip=1 if step == "set link up" else 0)
            with pytest.raises(OSError, match="injected"):
                first.do(first.network.prepare)
        links = ip("-br", "link", netns=first.netns)
        assert ("nrt-" in links, "nrx-" in links) == (False, False), step
    first.do(first.network.prepare)


def test_a_name_that_is_taken_is_told(hosts: list[Joined]) -> None:
    first = hosts[0]
    first.do(first.network.destroy)
    ip("link", "add", first.network.overlay.link, "type", "bridge", netns=first.netns)
    with pytest.raises(NativertError, match="is a bridge, not a vxlan"):
        first.do(first.network.prepare)
    assert ip("link", "show", "type", "bridge", netns=first.netns).count("nrx-") == 1
    assert "nrt-" not in ip("link", "show", netns=first.netns)


def test_addresses_of_pools_that_are_joined_are_reached(hosts: list[Joined]) -> None:
    first, second, _ = hosts
    reaches = first.network.reaches
    assert reaches("10.72.4.2")
    assert reaches("10.72.7.254")
    assert not reaches(second.network.gateway)
    assert not reaches("10.72.7.255")
    assert not reaches("10.75.4.2")
    inside(first.netns, first.network.overlay.forget)
    assert not reaches("10.72.4.2")
