"""Virtual networks and connection points by the unmodified FIMAPI, as far as FDUs use them."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, serving
from fog05_clients import FIMAPI, client, config, descriptor, free_port, in_time
from nodes import address, run_inside, until

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

# Says who it is to whoever connects, on every address that it has.
SERVER = """
import socket
with socket.create_server(("", 7000)) as server:
    print("up", flush=True)
    while True:
        with server.accept()[0] as peer:
            peer.sendall(socket.gethostname().encode())
"""
CONNECT = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), 0.5) as peer:
    print(peer.recv(100).decode(), end="")
"""


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def agent(root: Path, node: Node, port: int) -> Iterator[Agent]:
    with serving(root, config=config(port)) as one:
        yield one


@pytest.fixture
def api(agent: Agent, port: int) -> Iterator[FIMAPI]:
    with client(port) as one:
        yield one


def network(subnet: str, **fields: Any) -> dict[str, Any]:
    """A network as a user of the client writes it."""
    return {
        "uuid": str(uuid.uuid4()),
        "name": f"net-{subnet}",
        "net_type": "ELAN",
        "is_mgmt": False,
        "ip_configuration": {"ip_version": "IPV4", "subnet": subnet, "dhcp_enable": True},
        **fields,
    }


def on(network_uuid: str, name: str, **fields: Any) -> Any:
    """A descriptor with one interface at one connection point of a network."""
    point = {"id": "cp0", "name": "cp0", "cp_type": "VPORT", "vld_ref": network_uuid}
    virtual = {"intf_type": "VIRTIO", "vpci": "0:0:0", "bandwidth": 0}
    face = {"name": "eth0", "is_mgmt": False, "if_type": "INTERNAL", "cp_id": "cp0"}
    return descriptor(
        name=name,
        python=SERVER,
        connection_points=[point],
        interfaces=[{**face, "virtual_interface": virtual}],
        **fields,
    )


def started(api: FIMAPI, node: Node, fdu: Any) -> str:
    onboarded = in_time(lambda: api.fdu.onboard(fdu))
    instance = in_time(lambda: api.fdu.define(onboarded.get_uuid(), node.identity.id)).get_uuid()
    in_time(lambda: api.fdu.configure(instance))
    in_time(lambda: api.fdu.start(instance))
    until(lambda: in_time(lambda: api.fdu.log(instance)) == "up\n", what="it listens")
    return str(instance)


def reaches(node: Node, one: str, other: str) -> bool:
    # By its name: beyond the host's own routes anybody may answer for any address.
    _, said = run_inside(node, one, "python3", "-c", CONNECT, address(node, other))
    return said == node.get(other).name


def record(api: FIMAPI, instance: str) -> dict[str, Any]:
    return dict(in_time(lambda: api.fdu.instance_info(instance)).to_json())


def test_networks_and_points_of_the_catalog_come_and_go(api: FIMAPI) -> None:
    net = network("192.168.7.0/24")
    assert in_time(lambda: api.network.add_network(net)) == net["uuid"]
    assert in_time(api.network.list) == [net]
    point = {"uuid": str(uuid.uuid4()), "name": "cp", "vld_ref": net["uuid"]}
    in_time(lambda: api.network.add_connection_point(point))
    read = api.connector.glob.actual.get_network_port
    assert in_time(lambda: read("0", "0", point["uuid"])) == point
    in_time(lambda: api.network.delete_connection_point(point["uuid"]))
    assert in_time(lambda: read("0", "0", point["uuid"])) is None
    in_time(lambda: api.network.remove_network(net["uuid"]))
    assert in_time(api.network.list) == []


def test_a_network_is_made_on_a_node_and_removed(api: FIMAPI, node: Node) -> None:
    here, net = node.identity.id, network("192.168.7.0/24")
    with pytest.raises(ValueError, match="not present in catalog"):
        in_time(lambda: api.network.add_network_to_node(net, here))
    in_time(lambda: api.network.add_network(net))
    made = in_time(lambda: api.network.add_network_to_node(net, here))
    assert (made["uuid"], made["status"]) == (net["uuid"], "CREATE")
    bridge = bridge_of(node)
    assert node.identity.tag in bridge
    # Other agents describe it, and what names none is refused.
    assert ask(api, here, descriptor=net)["result"]["uuid"] == net["uuid"]
    for nonsense in ({"net_id": "*"}, {"net_id": "../x"}, {"descriptor": {}}, {"descriptor": "{"}):
        assert ask(api, here, **nonsense)["error"] == 22
    # Another time it is the same one.
    assert in_time(lambda: api.network.add_network_to_node(net, here))["uuid"] == net["uuid"]
    assert bridge_of(node) == bridge
    removed = in_time(lambda: api.network.remove_network_from_node(net["uuid"], here))
    assert removed["uuid"] == net["uuid"]
    assert bridge_of(node) == ""
    with pytest.raises(ValueError, match=r"Error 22 .*is not on this node"):
        in_time(lambda: api.network.remove_network_from_node(net["uuid"], here))


def test_fdus_reach_those_of_their_own_network_only(api: FIMAPI, node: Node) -> None:
    nets = [network("192.168.7.0/24"), network("192.168.8.0/24")]
    for net in nets:
        in_time(lambda: api.network.add_network(net))  # noqa: B023
    first, second = (started(api, node, on(nets[0]["uuid"], f"a{n}")) for n in (1, 2))
    other = started(api, node, on(nets[1]["uuid"], "b"))
    own = started(api, node, descriptor(name="own", python=SERVER, interfaces=[plain()]))
    assert address(node, first).startswith("192.168.7.")
    assert address(node, other).startswith("192.168.8.")
    assert reaches(node, first, second)
    assert reaches(node, second, first)
    for one, another in ((first, other), (other, first), (first, own), (own, first)):
        assert not reaches(node, one, another)
    told = record(api, first)
    (point,), (face,) = told["connection_points"], told["interfaces"]
    assert (point["cp_id"], point["vld_ref"]) == ("cp0", nets[0]["uuid"])
    assert face["cp_id"] == point["uuid"]
    assert point["status"] == face["status"] == "CONNECTED"
    assert point["veth_face_name"] == face["veth_face_name"]
    on_node = in_time(
        lambda: api.connector.glob.actual.get_node_network(
            "0", "0", node.identity.id, nets[1]["uuid"]
        )
    )
    assert on_node["uuid"] == nets[1]["uuid"]
    with pytest.raises(ValueError, match=r"Error 22 .*2 interfaces are on it"):
        in_time(lambda: api.network.remove_network_from_node(nets[0]["uuid"], node.identity.id))
    for instance in (first, second, other, own):
        in_time(lambda: api.fdu.terminate(instance))  # noqa: B023
    until(lambda: not node.list(), what="all are gone")
    for net in nets:
        in_time(lambda: api.network.remove_network_from_node(net["uuid"], node.identity.id))  # noqa: B023


def test_an_fdu_may_be_on_its_nodes_network_too(api: FIMAPI, node: Node) -> None:
    net = network("192.168.7.0/24")
    in_time(lambda: api.network.add_network(net))
    far = started(api, node, on(net["uuid"], "far"))
    own = started(api, node, descriptor(name="own", python=SERVER, interfaces=[plain()]))
    points = [{"id": "cp0", "name": "cp0", "vld_ref": net["uuid"]}, {"id": "cp1", "name": "cp1"}]
    faces = [plain() | {"cp_id": "cp1"}, plain() | {"name": "eth1", "cp_id": "cp0"}]
    both = descriptor(name="both", python=SERVER, connection_points=points, interfaces=faces)
    between = started(api, node, both)
    assert reaches(node, between, far)
    assert reaches(node, between, own)
    assert reaches(node, own, between)
    assert not reaches(node, far, between)


def test_a_connection_point_is_taken_off_its_network_and_put_on_it_again(
    api: FIMAPI, node: Node
) -> None:
    net, elsewhere = network("192.168.7.0/24"), network("192.168.8.0/24")
    for each in (net, elsewhere):
        in_time(lambda: api.network.add_network(each))  # noqa: B023
    first, second = (started(api, node, on(net["uuid"], f"a{n}")) for n in (1, 2))
    (told,) = record(api, second)["connection_points"]
    point = told["uuid"]
    assert in_time(lambda: api.network.disconnect_cp(point)) == point
    assert not reaches(node, first, second)
    until(lambda: status_of_point(api, second) == "DISCONNECTED", what="its status")
    with pytest.raises(ValueError, match=r"Error connecting: 22 .*is of network"):
        in_time(lambda: api.network.connect_cp_to_network(point, elsewhere["uuid"]))
    assert in_time(lambda: api.network.connect_cp_to_network(point, net["uuid"])) == point
    assert reaches(node, first, second)
    until(lambda: status_of_point(api, second) == "CONNECTED", what="its status")
    # A point of nobody is not there for the client, which says so itself.
    with pytest.raises(ValueError, match="not found"):
        in_time(lambda: api.network.disconnect_cp(str(uuid.uuid4())))
    in_time(lambda: api.fdu.terminate(second))
    with pytest.raises(ValueError, match="not found"):
        in_time(lambda: api.network.disconnect_cp(point))


def test_what_a_network_here_cannot_be_is_refused_when_it_is_asked_for(
    api: FIMAPI, node: Node
) -> None:
    here = node.identity.id
    for net, reason in (
        (network("192.168.7.0/24", overlay=True), "overlay: a virtual network is on one node"),
        (network("192.168.7.0/24", net_type="ELINE"), "net_type is 'ELINE'"),
        (network("192.168.7.0/31"), "no address to give out"),
        (network("fd00::/64"), "expected an IPv4 network"),
        (network("192.168.7.0/24", ip_configuration=None), "no ip_configuration.subnet"),
        (network(str(node.identity.subnet)), "in the way of"),
    ):
        in_time(lambda: api.network.add_network(net))  # noqa: B023
        if reason != "in the way of":
            with pytest.raises(ValueError, match=r"Error 22 .*" + reason):
                in_time(lambda: api.network.add_network_to_node(net, here))  # noqa: B023
        fdu = in_time(lambda: api.fdu.onboard(on(net["uuid"], "app")))  # noqa: B023
        with pytest.raises(ValueError, match=r"Error 22 .*" + reason):
            in_time(lambda: api.fdu.define(fdu.get_uuid(), here))  # noqa: B023
    fdu = in_time(lambda: api.fdu.onboard(on(str(uuid.uuid4()), "app")))
    with pytest.raises(ValueError, match=r"Error 22 .*is not in the catalog"):
        in_time(lambda: api.fdu.define(fdu.get_uuid(), here))
    assert node.list() == []
    assert bridge_of(node) == ""


def test_routers_and_floating_addresses_are_refused_at_once_with_a_number(
    api: FIMAPI, node: Node
) -> None:
    here, some = node.identity.id, str(uuid.uuid4())
    for call, number in (
        (lambda: api.network.add_router(here, {"uuid": some}), 22),
        (lambda: api.network.add_router_port(here, some, "INTERNAL", some), 22),
        (lambda: api.network.remove_router_port(here, some, some), 22),
        (lambda: api.network.create_floating_ip(here), 33),
        (lambda: api.network.delete_floating_ip(here, some), 33),
        (lambda: api.network.assign_floating_ip(here, some, some), 33),
        (lambda: api.network.retain_floating_ip(here, some, some), 33),
    ):
        reply = in_time(call)
        assert reply["error"] == number
        assert "a node has no" in reply["error_msg"]
    in_time(lambda: api.network.remove_router(here, some))
    read = api.connector.glob.actual.get_node_network_router
    assert in_time(lambda: read("0", "0", here, some)) is None


def test_networks_outlive_the_agent_and_are_told_again(
    root: Path, node: Node, agent: Agent, port: int
) -> None:
    net = network("192.168.7.0/24")
    with client(port) as api:
        in_time(lambda: api.network.add_network(net))
        first, second = (started(api, node, on(net["uuid"], f"a{n}")) for n in (1, 2))
        (told,) = record(api, second)["connection_points"]
    assert agent.end() == 0
    assert reaches(node, first, second)
    with serving(root), client(port) as api:
        assert in_time(api.network.list) == [net]
        point = told["uuid"]
        assert in_time(lambda: api.network.disconnect_cp(point)) == point
        assert not reaches(node, first, second)
        in_time(lambda: api.network.connect_cp_to_network(point, net["uuid"]))
        assert reaches(node, first, second)


def ask(api: FIMAPI, node_id: str, **parameters: Any) -> dict[str, Any]:
    """Ask a node to make a network, with other parameters than the client's."""
    actual = api.connector.glob.actual
    path = actual.get_agent_exec_path_with_params
    selector = path("0", "0", node_id, "create_node_network", parameters)
    (answer,) = in_time(lambda: actual.ws.get(selector))
    return dict(json.loads(answer.get_value().get_value()))


def plain() -> dict[str, Any]:
    return {
        "name": "eth0",
        "is_mgmt": False,
        "if_type": "INTERNAL",
        "virtual_interface": {"intf_type": "VIRTIO", "vpci": "0:0:0", "bandwidth": 0},
    }


def status_of_point(api: FIMAPI, instance: str) -> str:
    return str(record(api, instance)["connection_points"][0]["status"])


def bridge_of(node: Node) -> str:
    """Return the bridge of the one virtual network that the node has, or "" without one."""
    listed = subprocess.run(
        ["ip", "-j", "link", "show", "type", "bridge"], capture_output=True, check=True
    )
    names = [each["ifname"] for each in json.loads(listed.stdout or b"[]") if each]
    found = [name for name in names if name.startswith(f"nw{node.identity.tag}")]
    assert len(found) <= 1
    return found[0] if found else ""
