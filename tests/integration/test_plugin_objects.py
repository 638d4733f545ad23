"""The plugin's objects: fog05's string functions on a real host, and a node behind them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from nodes import PYTHON, MakeNode, make_descriptor, run_inside, start, tag_of

from nativert.errors import Code, NativertError
from nativert.plugin.embedded import EmbeddedConnector
from nativert.plugin.foreign_network import ForeignNetwork
from nativert.plugin.foreign_os import ForeignOs
from nativert.plugin.reports import Reports
from nativert.plugin.string_api import Call, Reply, arguments
from nativert.plugin.surroundings import Surroundings, of_node
from nativert.runtime.node import Node
from nativert.runtime.protocols import Attached

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"


class Recording:
    """A plugin of somebody else: it speaks only the string functions, and notes each call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.broken: dict[str, Reply] = {}

    def __call__(self, name: str, parameters: Mapping[str, str]) -> Reply:
        assert all(isinstance(value, str) for value in parameters.values())
        self.calls.append((name, dict(parameters)))
        return self.broken.get(name) or self._call(name, parameters)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


class Foreign:
    """A node whose files and network are behind recorded string functions."""

    def __init__(self, make_node: MakeNode, own: Node, around: Surroundings) -> None:
        self.os, self.nm = Recording(around.os), Recording(around.nm)
        self.node = make_node(
            own.paths.root,
            os=ForeignOs(self.os),
            network=lambda identity: ForeignNetwork(self.nm, identity.tag),
        )


@pytest.fixture
def around(node: Node) -> Iterator[Surroundings]:
    one = of_node(node, Reports(), EmbeddedConnector())
    yield one
    one.close()


@pytest.fixture
def ask(around: Surroundings) -> Callable[..., Any]:
    def call(name: str, /, **parameters: object) -> Any:
        reply = around.nm(name, arguments(**parameters))
        assert set(reply) in ({"result"}, {"error", "error_msg"}), reply
        return reply.get("result", reply.get("error"))

    return call


@pytest.fixture
def foreign(make_node: MakeNode, node: Node, around: Surroundings) -> Iterator[Foreign]:
    one = Foreign(make_node, node, around)
    yield one
    # The node's own network knows nothing of the names that this one has pinned.
    one.nm.broken.clear()
    for row in one.node.list():
        one.node.remove(row.instance, force=True)
    assert pins(one.node.identity.tag) == []


def pins(tag: str) -> list[str]:
    try:
        return [name for name in os.listdir("/run/netns") if tag in name]
    except FileNotFoundError:
        return []


def test_a_whole_life_behind_both_adapters(foreign: Foreign, root: Path) -> None:
    node, tag = foreign.node, tag_of(root)
    app = start(node, shell=SLEEP, veth=True)
    assert len(pins(tag)) == 1
    native: Any = node.inspect(app)["native"]
    address, link = native["interfaces"][0]["address"], native["interfaces"][0]["link"]
    assert pins(tag) == [link]
    code, text = run_inside(node, app, "/sbin/ip", "-4", "route")
    assert code == 0
    assert "default via" in text
    assert f"src {address}" in text
    gateway = text.split("default via ")[1].split()[0]
    with socket.create_server((gateway, 0)) as server:
        port = server.getsockname()[1]
        knock = f"import socket; socket.create_connection(('{gateway}', {port}), 5)"
        assert run_inside(node, app, PYTHON, "-S", "-c", knock) == (0, "")
    assert node.pause(app).state == "PAUSED"
    assert node.resume(app).state == "RUNNING"
    assert node.stats([app])[0].net_rx_bytes is None
    node.stop(app)
    node.run(app)
    node.stop(app)
    node.clean(app)
    assert pins(tag) == []
    assert link not in dict(socket.if_nameindex()).values()
    node.configure(app)
    node.clean(app)
    node.undefine(app)
    assert pins(tag) == []
    used = foreign.nm.names
    assert used[:4] == [
        "create_virtual_bridge",
        "create_virtual_interface_in_namespace",
        "attach_interface_to_bridge",
        "assign_address_to_interface_in_namespace",
    ]
    assert "delete_virtual_interface_from_namespace" in used
    assert {"create_dir", "remove_dir", "dir_exists"} <= set(foreign.os.names)


def test_an_own_manager_pins_nothing(node: Node, root: Path) -> None:
    start(node, shell=SLEEP, veth=True)
    assert pins(tag_of(root)) == []


def test_a_network_plugin_that_fails_half_way_leaves_nothing(foreign: Foreign, root: Path) -> None:
    foreign.nm.broken["assign_address_to_interface_in_namespace"] = {"error": 22, "error_msg": "no"}
    app = foreign.node.define(make_descriptor(shell=SLEEP, veth=True)).instance
    with pytest.raises(NativertError, match="assign_address_to_interface_in_namespace: no") as e:
        foreign.node.configure(app)
    assert e.value.code is Code.NETWORK
    assert foreign.node.get(app).state == "DEFINED"
    assert pins(tag_of(root)) == []
    foreign.nm.broken.clear()
    assert foreign.node.configure(app).state == "CONFIGURED"


def test_what_a_network_plugin_cannot_do_is_refused(foreign: Foreign) -> None:
    ports = {"network": {"ports": ["18080:80"]}}
    app = foreign.node.define(make_descriptor(shell=SLEEP, veth=True, native=ports)).instance
    with pytest.raises(NativertError, match="publishes none"):
        foreign.node.configure(app)
    assert foreign.node.get(app).state == "DEFINED"


def test_gc_removes_a_pin_that_nobody_has(foreign: Foreign, root: Path) -> None:
    link = f"nv{tag_of(root)}77"
    foreign.nm("create_virtual_bridge", arguments(name=f"nrt-{tag_of(root)}", uuid="own"))
    network = ForeignNetwork(foreign.nm, tag_of(root))
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    from nativert.runtime import named_networks

    named_networks.pin(fd, link)
    os.close(fd)
    assert network.links() == (link,)
    assert (("link", link, True)) in [(f.kind, f.name, f.removed) for f in foreign.node.gc()]
    assert network.gone([Attached("eth0", link, 0, "", "")])


def test_single_steps_on_links(ask: Callable[..., Any], root: Path) -> None:
    tag = tag_of(root)
    ns = ask("create_network_namespace")
    other = ask("create_network_namespace")
    assert {ns, other} <= set(pins(tag))
    made = ask("create_virtual_interface_in_namespace", internal_name="in0", nsname=ns)
    outside = made["external"]["name"]
    assert made["namespace"] == ns
    assert made["internal"]["name"] == "in0"
    assert outside in dict(socket.if_nameindex()).values()
    bridge = f"br{tag}"
    assert ask("create_bridges_if_not_exist", expected_bridges=[bridge]) == [bridge]
    assert ask("create_bridges_if_not_exist", expected_bridges=[bridge]) == []
    assert ask("attach_interface_to_bridge", intf_name=outside, br_name=bridge) == outside
    assert os.readlink(f"/sys/class/net/{outside}/master").endswith(bridge)
    assert ask("detach_interface_from_bridge", intf_name=outside) == outside
    assert not os.path.exists(f"/sys/class/net/{outside}/master")
    renamed = ask("rename_virtual_interface_in_namespace", name="in0", newname="eth7", nsname=ns)
    assert renamed == "eth7"
    inside = {"intf_name": "eth7", "nsname": ns}
    mac, address = "02:00:00:00:00:07", "10.99.0.2/24"
    assert ask("assign_mac_address_to_interface_in_namespace", **inside, address=mac) == mac
    assert ask("get_address_of_interface_in_namespace", **inside) == ""
    given = ask("assign_address_to_interface_in_namespace", **inside, address=address)
    assert given == address
    assert ask("get_address_of_interface_in_namespace", **inside) == address
    assert ask("remove_address_from_interface_in_namespace", **inside) == address
    assert ask("get_address_of_interface_in_namespace", **inside) == ""
    assert ask("assign_address_to_interface_in_namespace", **inside) == Code.NETWORK.fog05
    macvlan = ask("create_macvlan_interface", master_intf=outside)
    assert ask("move_interface_in_namespace", intf_name=macvlan, nsname=other) == macvlan
    assert macvlan not in dict(socket.if_nameindex()).values()
    assert ask("delete_macvlan_interface", intf_name=macvlan, netns=other) == macvlan
    deleted = ask("delete_virtual_interface_from_namespace", internal_name="eth7", nsname=ns)
    assert deleted == "eth7"
    assert outside not in dict(socket.if_nameindex()).values()
    assert ask("delete_virtual_bridge", br_uuid=bridge) == bridge
    assert ask("delete_virtual_bridge", br_uuid=bridge) < 0
    for name in (ns, other):
        assert ask("delete_network_namespace", nsname=name) == name
    assert ask("delete_network_namespace", nsname=ns) < 0
    assert pins(tag) == []


def test_what_is_not_the_nodes_own_is_not_touched(ask: Callable[..., Any]) -> None:
    assert ask("delete_network_namespace", nsname="somebody") == Code.NETWORK.fog05
    assert ask("delete_macvlan_interface", intf_name="lo") == Code.NETWORK.fog05
    assert ask("delete_virtual_bridge", br_uuid="of-nobody") < 0
    assert ask("create_virtual_bridge", name="lo", uuid="x") == Code.NETWORK.fog05
    assert ask("delete_network_namespace", nsname="../../etc") == Code.NETWORK.fog05


def test_the_host_is_described_as_it_is(around: Surroundings) -> None:
    links = around.os("get_network_informations", {})["result"]
    by_name = {link["intf_name"]: link for link in links}
    assert by_name["lo"]["type"] == "loopback"
    assert by_name["lo"]["intf_configuration"]["ipv4_address"] == "127.0.0.1"
    routes = subprocess.run(
        ["ip", "-4", "route", "show", "default"], capture_output=True, text=True
    )
    default = [name for name, link in by_name.items() if link["default_gw"]]
    assert bool(default) == bool(routes.stdout.strip())
    reply = around.os("local_mgmt_address", {})
    if default:
        assert reply["result"]["v4"] == by_name[default[0]]["intf_configuration"]["ipv4_address"]
    else:
        assert reply["error"] < 0
