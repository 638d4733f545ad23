"""A host of its own for the tests of the network: namespaces, an uplink, and who talks over it."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
import scale

from nativert.isolation import syscalls
from nativert.isolation.network import netlink, sysctl
from nativert.isolation.network.netns import inside
from nativert.runtime.network import BridgeNetwork
from nativert.runtime.protocols import Attached, InterfaceRequest

HOST = "198.51.100.1"
OTHER_HOST = "198.51.100.2"
DEADLINE_S = scale.LONG_S
REFUSED_S = scale.seconds(0.5)


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


@contextmanager
def own_host(state: Path) -> Iterator[Host]:
    """Move the test's thread into a host of its own: nothing of it can stay on the machine."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.unshare(syscalls.CLONE_NEWNET)
    made = Host(state)
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
