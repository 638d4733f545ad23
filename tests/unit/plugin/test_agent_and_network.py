"""The agent's and the network's functions where no root is needed, and a network made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from nativert.errors import Code, NativertError, UnknownInstanceError
from nativert.plugin import keys
from nativert.plugin.agent_api import FUNCTIONS, AgentApi
from nativert.plugin.embedded import EmbeddedConnector
from nativert.plugin.foreign_network import ForeignNetwork
from nativert.plugin.nm_api import ALIASES, REFUSED, NodeNetworkApi
from nativert.plugin.nm_api import FUNCTIONS as NETWORK_FUNCTIONS
from nativert.plugin.string_api import Reply, arguments
from nativert.plugin.surroundings import network_plugin, os_plugin
from nativert.runtime.named_networks import NamedNetworks
from nativert.runtime.node import Node
from nativert.runtime.protocols import InterfaceRequest, NetworkManager


class OneInstance:
    """As much of a node as the agent's functions ask for."""

    def inspect(self, ref: str) -> dict[str, object]:
        if ref != "i":
            raise UnknownInstanceError(ref)
        return {"uuid": "i", "fdu_id": "f", "status": "RUN", "native": {}}


def test_the_agents_functions() -> None:
    connector = EmbeddedConnector()
    call = AgentApi(connector, cast("Node", OneInstance()), "n").call
    asked = arguments(fdu_uuid="f", instance_uuid="i", node_uuid="n")
    assert call("get_node_fdu_info", asked) == {
        "result": {"uuid": "i", "fdu_id": "f", "status": "RUN"}
    }
    for other in ({"fdu_uuid": "x"}, {"instance_uuid": "x"}, {"node_uuid": "x"}):
        assert call("get_node_fdu_info", asked | other)["error"] == Code.NOT_FOUND.fog05
    for name, parameter, path, code in (
        ("get_fdu_info", "fdu_uuid", keys.descriptor("1"), 11),
        ("get_image_info", "image_uuid", "/agfos/0/tenants/0/image/1/info", 11),
        ("get_network_info", "uuid", "/agfos/0/tenants/0/networks/1/info", 22),
        ("get_port_info", "cp_uuid", "/agfos/0/tenants/0/networks/ports/1/info", 33),
    ):
        assert call(name, {parameter: "1"})["error"] == code
        connector.put(path, json.dumps({"uuid": "1"}).encode())
        assert call(name, {parameter: "1"}) == {"result": {"uuid": "1"}}
    assert call("get_node_mgmt_address", {"node_uuid": "x"})["error"] == Code.NOT_FOUND.fog05
    assert len(FUNCTIONS) == 6


NETWORK = NodeNetworkApi(cast("NamedNetworks", None)).call


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_a_node_has_not_is_refused_with_fog05s_code(name: str) -> None:
    reply = NETWORK(name, {"whatever": "it is"})
    assert reply["error"] == (22 if "router" in name else 33)
    assert reply["error_msg"].startswith(f"{name}: this node has no")


@pytest.mark.parametrize("name", [*NETWORK_FUNCTIONS, *ALIASES, "unknown"])
def test_wrong_parameters_are_refused_before_anything_is_done(name: str) -> None:
    reply = NETWORK(name, {"nonsense": ""})
    assert reply["error"] in (Code.DESCRIPTOR.fog05, Code.NOT_FOUND.fog05)


class Pins:
    """Names of namespaces without a kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[str, int] = {}
        module = "nativert.plugin.foreign_network.named_networks"
        monkeypatch.setattr(f"{module}.pin", lambda fd, name: self.names.update({name: fd}))
        monkeypatch.setattr(f"{module}.unpin", lambda name: self.names.pop(name, None))
        monkeypatch.setattr(
            f"{module}.names", lambda prefix: [n for n in self.names if n.startswith(prefix)]
        )


class Recorder:
    """A network plugin that says yes to everything but what it is told to refuse."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.refuse: dict[str, Reply] = {}

    def __call__(self, name: str, parameters: Mapping[str, str]) -> Reply:
        self.calls.append((name, dict(parameters)))
        made = {"internal": {"mac": "02:00:00:00:00:09"}, "external": {"name": "v-fns-0-1"}}
        result: Any = made if name.startswith("create_virtual_interface") else ""
        return self.refuse.get(name, {"result": result})


ETH0 = InterfaceRequest("eth0", "nvabc1231", "10.0.0.2", 22, "10.0.0.1")
ETH1 = InterfaceRequest("eth1", "nvabc1232", "10.0.0.3", 22, "10.0.0.1", mac="02:00:00:00:00:AA")


def test_interfaces_by_a_foreign_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pins, plugin = Pins(monkeypatch), Recorder()
    network: NetworkManager = ForeignNetwork(plugin, "abc123", bridge="br0")
    network.prepare()
    attached = network.attach(7, [ETH0, ETH1])
    assert pins.names == {"nvabc1231": 7, "nvabc1232": 7}
    assert [(a.name, a.link, a.mac) for a in attached] == [
        ("eth0", "nvabc1231", "02:00:00:00:00:09"),
        ("eth1", "nvabc1232", "02:00:00:00:00:aa"),
    ]
    inside = {"intf_name": "eth0", "nsname": "nvabc1231"}
    assert plugin.calls[:4] == [
        ("create_virtual_bridge", {"name": "br0", "uuid": "br0"}),
        (
            "create_virtual_interface_in_namespace",
            {"internal_name": "eth0", "nsname": "nvabc1231"},
        ),
        ("attach_interface_to_bridge", {"intf_name": "v-fns-0-1", "br_name": "br0"}),
        ("assign_address_to_interface_in_namespace", {**inside, "address": "10.0.0.2/22"}),
    ]
    assert not network.gone(attached)
    with pytest.raises(NativertError, match="2 interfaces are attached"):
        network.destroy()
    # Found by another process, which has seen nothing of it.
    another: NetworkManager = ForeignNetwork(plugin, "abc123", bridge="br0")
    another.detach(attached)
    another.detach(attached)
    assert another.gone(attached)
    deleted = [call for call in plugin.calls if call[0].startswith("delete")]
    assert [parameters["internal_name"] for _, parameters in deleted] == ["eth0", "eth1"]
    another.destroy()
    another.close()
    assert not another.present()


@pytest.mark.parametrize("refused", ["create_virtual_interface_in_namespace", "assign"])
def test_all_interfaces_or_none(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    pins, plugin = Pins(monkeypatch), Recorder()
    if refused == "assign":
        refused = "assign_mac_address_to_interface_in_namespace"
    plugin.refuse[refused] = {"error": 22, "error_msg": "no"}
    network = ForeignNetwork(plugin, "abc123")
    with pytest.raises(NativertError, match=f"{refused}: no"):
        network.attach(7, [ETH0, ETH1])
    assert pins.names == {}


@pytest.mark.parametrize("answer", [None, "", [], {}, {"external": {}}, {"internal": {}}])
def test_an_answer_that_says_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    pins, plugin = Pins(monkeypatch), Recorder()
    plugin.refuse["create_virtual_interface_in_namespace"] = {"result": answer}
    with pytest.raises(NativertError, match="does not say what it has made"):
        ForeignNetwork(plugin, "abc123").attach(7, [ETH0])
    assert pins.names == {}


def test_an_interface_that_is_gone_already_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pins, plugin = Pins(monkeypatch), Recorder()
    network = ForeignNetwork(plugin, "abc123")
    attached = network.attach(7, [ETH0, ETH1])
    plugin.refuse["delete_virtual_interface_from_namespace"] = {"error": -19, "error_msg": "gone"}
    network.detach(attached[:1])
    plugin.refuse["delete_virtual_interface_from_namespace"] = {"error": -1, "error_msg": "why"}
    with pytest.raises(NativertError, match="why"):
        network.detach(attached[1:])
    assert list(pins.names) == ["nvabc1232"]


def test_bandwidth_and_counters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Pins(monkeypatch)
    network = ForeignNetwork(Recorder(), "abc123")
    limited = InterfaceRequest("eth0", "nvabc1231", "10.0.0.2", 22, "", bandwidth_mbit=5)
    with pytest.raises(NativertError, match="limits nothing") as e:
        network.attach(7, [limited])
    assert e.value.code is Code.UNENFORCEABLE
    with pytest.raises(OSError, match="counts no traffic"):
        network.counters(network.attach(7, [ETH0]))
    network.publish("10.0.0.2", [])
    network.withdraw("10.0.0.2")


def test_plugins_of_others_are_asked_by_their_evals() -> None:
    connector = EmbeddedConnector()
    connector.eval("/alfos/n/os/exec/dir_exists", lambda p: {"result": p["dir_path"] == "/x"})
    connector.eval("/alfos/n/network_managers/m/exec/get_vlan_face", lambda _: {"result": "eth0"})
    assert os_plugin(connector, "n")("dir_exists", {"dir_path": "/x"}) == {"result": True}
    assert network_plugin(connector, "n", "m")("get_vlan_face", {}) == {"result": "eth0"}
    with pytest.raises(NativertError, match="nobody answers"):
        os_plugin(connector, "n")("create_dir", {"dir_path": "/x"})
