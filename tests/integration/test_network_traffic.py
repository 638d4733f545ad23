"""Who reaches whom through the node's network, how fast, and what is counted."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest
import scale
from network_hosts import (
    DEADLINE_S,
    HOST,
    OTHER_HOST,
    Host,
    Server,
    ip,
    open_socket,
    refused,
    wait_until,
)

from nativert.isolation.network import nftables, sysctl
from nativert.isolation.network.netns import inside
from nativert.runtime.protocols import PortRequest

pytestmark = [pytest.mark.root, pytest.mark.netns]


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


def test_siblings_see_each_other_with_their_own_addresses(host: Host) -> None:
    network = host.network()
    first, attached = host.instance(network, 0)
    second, sibling = host.instance(network, 1)
    with Server(first, "0.0.0.0", 80) as server:
        assert server.reached(second, attached.address, 80) == sibling.address


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

    def sent_s() -> float:
        with open_socket(source) as client:
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
        assert took_s > 0.8
        return took_s

    with Server(sink, "0.0.0.0", 9000) as server:
        assert scale.quickest(sent_s, below_s=scale.seconds(5), times=4) < scale.seconds(5)


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
        assert "ip filter FORWARD" in drop.what
        for command in drop.mend.split("; "):
            subprocess.run(command.split(), check=True)
        assert network.foreign_forward_drops() == []
        server.reached(host.other, HOST, 8080)
