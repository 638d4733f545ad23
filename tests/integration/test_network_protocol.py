"""Links, addresses, ports, files and downloads go only through the runtime's Protocols."""

from __future__ import annotations

import ipaddress
import socket
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import census
import pytest
import scale
from nodes import make_descriptor, run_inside, tag_of, until_logged

from nativert.errors import Code, NativertError
from nativert.runtime.local_os import LocalOs
from nativert.runtime.node import Node
from nativert.runtime.protocols import (
    Attached,
    Counters,
    DownloadLimits,
    InterfaceRequest,
    NetworkManager,
    Os,
    PortRequest,
    Progress,
)
from nativert.store.identity import Identity

pytestmark = [pytest.mark.root, pytest.mark.netns]


class RecordingNetwork:
    """Makes nothing; keeps what it is asked for."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.calls: list[str] = []
        self.attached: dict[str, InterfaceRequest] = {}
        self.published: dict[str, list[PortRequest]] = {}
        self.fail = ""
        self.prepared = False

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fail:
            raise OSError(95, "refused by the test")

    def prepare(self) -> None:
        self._called("prepare")
        self.prepared = True

    def attach(self, netns: int, interfaces: Sequence[InterfaceRequest]) -> tuple[Attached, ...]:
        self._called("attach")
        self.attached |= {request.link: request for request in interfaces}
        return tuple(
            Attached(r.name, r.link, 1000 + number, r.mac or "02:00:00:00:00:01", r.address)
            for number, r in enumerate(interfaces)
        )

    def detach(self, attached: Sequence[Attached]) -> None:
        self._called("detach")
        for interface in attached:
            self.attached.pop(interface.link, None)

    def gone(self, attached: Sequence[Attached]) -> bool:
        return not any(interface.link in self.attached for interface in attached)

    def publish(self, address: str, ports: Sequence[PortRequest]) -> None:
        self._called("publish")
        self.published.setdefault(address, []).extend(ports)

    def withdraw(self, address: str) -> None:
        self._called("withdraw")
        self.published.pop(address, None)

    def counters(self, attached: Sequence[Attached]) -> Counters:
        return Counters(11, 1, 0, 22, 2, 0)

    def resolver(self) -> str:
        self._called("resolver")
        return "nameserver 192.0.2.53\n"

    def links(self) -> tuple[str, ...]:
        return tuple(self.attached)

    def present(self) -> bool:
        return self.prepared

    def destroy(self) -> None:
        self._called("destroy")
        self.prepared = False

    def close(self) -> None:
        self._called("close")


class RecordingOs(LocalOs):
    """The host's own files; keeps which were asked for, and fetches from memory."""

    def __init__(self, served: dict[str, Path]) -> None:
        self.calls: list[tuple[str, Path]] = []
        self.served = served

    def make_dir(
        self, path: Path, *, mode: int = 0o755, owner: tuple[int, int] | None = None
    ) -> None:
        self.calls.append(("make_dir", path))
        super().make_dir(path, mode=mode, owner=owner)

    def remove_tree(self, path: Path) -> None:
        self.calls.append(("remove_tree", path))
        super().remove_tree(path)

    def download(
        self, uri: str, target: Path, *, limits: DownloadLimits, progress: Progress | None
    ) -> None:
        self.calls.append(("download", target))
        target.write_bytes(self.served[uri].read_bytes())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.tar"
    program = tmp_path / "app"
    program.write_text("#!/bin/sh\ncat /etc/resolv.conf\nexec sleep 1000\n")
    program.chmod(0o755)
    with tarfile.open(path, "w") as tar:
        tar.add(program, "bin/app")
    return path


@pytest.fixture
def host(image: Path) -> RecordingOs:
    return RecordingOs({"https://images.invalid/app.tar": image})


@pytest.fixture
def networks() -> list[RecordingNetwork]:
    return []


@pytest.fixture
def node(
    make_node: Callable[..., Node], host: RecordingOs, networks: list[RecordingNetwork]
) -> Node:
    def recording(identity: Identity) -> RecordingNetwork:
        # One for all nodes of the root: it stands for the kernel, which there is one of too.
        if not networks:
            networks.append(RecordingNetwork(identity))
        return networks[0]

    return make_node(os=host, network=recording)


@pytest.fixture
def network(node: Node, networks: list[RecordingNetwork]) -> RecordingNetwork:
    assert node._context.network is networks[0]
    return networks[0]


@pytest.fixture(autouse=True)
def nothing_on_the_host(root: Path, node: Node) -> Iterator[None]:
    """No link, table or route of this node appears on the host while the test runs."""
    yield
    tag = tag_of(root)
    assert not [name for _, name in socket.if_nameindex() if tag in name]
    assert not [line for line in census.take() if line.startswith("nftables") and tag in line]


DESCRIPTOR: dict[str, Any] = {
    "binary": "app",
    "image": {"uri": "https://images.invalid/app.tar", "format": "tar"},
    "interfaces": [
        {"name": "eth0", "virtual_interface": {"intf_type": "VIRTIO", "bandwidth": 100}},
        {"name": "edge1", "mac_address": "02:00:00:aa:bb:cc"},
    ],
    "native": {"network": {"ports": ["21201:80", "127.0.0.1:21202:53/udp"]}},
}


def test_the_recorders_satisfy_the_protocols(host: RecordingOs, network: RecordingNetwork) -> None:
    files: Os = host
    links: NetworkManager = network
    for recorder, protocol in ((files, Os), (links, NetworkManager)):
        for name in vars(protocol):
            if not name.startswith("_"):
                assert callable(getattr(recorder, name))


def test_the_whole_lifecycle(
    node: Node, root: Path, host: RecordingOs, network: RecordingNetwork
) -> None:
    row = node.define(make_descriptor(**DESCRIPTOR))
    app = row.instance
    assert network.calls == []
    node.configure(app)
    assert network.calls == ["resolver", "prepare", "attach", "publish"]
    first, second = network.attached.values()
    assert (first.name, first.bandwidth_mbit, first.mac) == ("eth0", 100, None)
    assert (second.name, second.bandwidth_mbit, second.mac) == ("edge1", 0, "02:00:00:aa:bb:cc")
    subnet = network.identity.subnet
    for request in (first, second):
        assert ipaddress.ip_address(request.address) in subnet
        assert (request.prefix, request.gateway) == (subnet.prefixlen, network.identity.gateway)
        assert request.link.startswith(f"nv{network.identity.tag}")
        assert len(request.link) <= 15
    assert first.address != second.address
    assert network.published == {
        first.address: [
            PortRequest(None, 21201, 80, "tcp"),
            PortRequest("127.0.0.1", 21202, 53, "udp"),
        ]
    }
    # Inside there is a namespace of its own, in which the manager has put nothing.
    assert run_inside(node, app, "ls", "/sys/class/net") == (0, "lo\n")
    assert not [name for _, name in socket.if_nameindex() if network.identity.tag in name]

    node.run(app)
    until_logged(node, app, "nameserver 192.0.2.53")
    figures = node.stats([app])[0]
    assert (figures.net_rx_bytes, figures.net_tx_bytes) == (11, 22)
    quiet = list(network.calls)
    node.pause(app)
    node.resume(app)
    node.scale(app, {"pids_max": 50})
    node.restart(app)
    node.stop(app)
    node.run(app)
    node.stop(app)
    assert network.calls == quiet  # addresses and ports belong to configure and clean

    node.clean(app)
    assert network.calls[len(quiet) :] == ["withdraw", "withdraw", "detach"]
    assert (network.attached, network.published) == ({}, {})
    node.undefine(app)
    node.gc()
    assert network.calls[-1] == "destroy"
    assert not network.prepared

    downloads = [path for call, path in host.calls if call == "download"]
    assert len(downloads) == 1
    assert all(path.is_relative_to(root) for _, path in host.calls)
    removed = {path for call, path in host.calls if call == "remove_tree"}
    assert root / "run/nativert/i" / app in removed
    assert root / "var/lib/nativert/i" / app in removed


def test_the_same_address_after_clean(node: Node, network: RecordingNetwork) -> None:
    app = node.define(make_descriptor(shell="exec sleep 1000", veth=True)).instance
    node.configure(app)
    before = [(r.link, r.address) for r in network.attached.values()]
    node.clean(app)
    node.configure(app)
    assert [(r.link, r.address) for r in network.attached.values()] == before


@pytest.mark.parametrize("call", ["prepare", "attach", "publish", "resolver"])
def test_a_network_that_refuses_fails_configure_and_all_is_given_back(
    node: Node, network: RecordingNetwork, call: str
) -> None:
    app = node.define(make_descriptor(**DESCRIPTOR)).instance
    network.fail = call
    with pytest.raises(NativertError, match="refused by the test") as failed:
        node.configure(app)
    assert failed.value.code in (Code.NETWORK, Code.CONFIGURE)
    assert node.get(app).state == "DEFINED"
    assert (network.attached, network.published) == ({}, {})
    assert not (node._context.paths.instance_run(app)).exists()
    assert f"i-{app}" not in node._context.driver.names()
    assert node._context.claims.ports(node._context.identity.id) == {}
    network.fail = ""
    assert node.configure(app).state == "CONFIGURED"


def test_a_network_that_does_not_let_go_keeps_the_instance_configured(
    node: Node, network: RecordingNetwork
) -> None:
    app = node.define(make_descriptor(**DESCRIPTOR)).instance
    node.configure(app)
    network.fail = "detach"
    with pytest.raises(NativertError, match="refused by the test") as failed:
        node.clean(app)
    assert failed.value.code is Code.CLEAN
    network.fail = ""
    # The next operation finishes what clean had begun.
    assert node.get(app).state == "DEFINED"
    assert network.attached == {}
    node.undefine(app)


def test_without_an_interface_the_network_is_not_asked(
    node: Node, network: RecordingNetwork
) -> None:
    app = node.define(make_descriptor(shell="exit 0")).instance
    node.configure(app)
    node.run(app)
    node.wait(app, timeout_s=scale.LONG_S)
    node.clean(app)
    node.undefine(app)
    assert network.calls == []
