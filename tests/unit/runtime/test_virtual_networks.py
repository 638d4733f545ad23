"""What a node makes of a network that somebody has put into the catalog."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import Code, NativertError
from nativert.runtime import virtual_networks

NET = "6cc2aa30-1dcf-4c93-a57e-433fd0bd498e"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["name", "net_type", "ip_configuration", "overlay", "vni", "subnet"])


def described(**fields: Any) -> dict[str, Any]:
    return {"uuid": NET, "ip_configuration": {"subnet": "192.168.7.0/24"}, **fields}


def test_name_and_subnet_are_what_counts() -> None:
    found = virtual_networks.decode(NET, described(name="cell", net_type="ELAN", overlay=False))
    assert (found.uuid, found.name, found.subnet) == (NET, "cell", IPv4Network("192.168.7.0/24"))
    # The address of a host of it says the same.
    loose = described(ip_configuration={"subnet": "192.168.7.9/24", "gateway": "192.168.7.1"})
    assert virtual_networks.decode(NET, loose).subnet == found.subnet
    assert virtual_networks.decode(NET, loose).name == NET


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"overlay": True}, "overlay: a virtual network is on one node"),
        ({"vni": 7}, "vni: a virtual network is on one node"),
        ({"vlan_id": 7}, "vlan_id: a virtual network is on one node"),
        ({"mcast_addr": "239.0.0.1"}, "mcast_addr: a virtual network is on one node"),
        ({"face": "eth0"}, "face: a virtual network is on one node"),
        ({"net_type": "ELINE"}, "net_type is 'ELINE': expected ELAN"),
        ({"ip_configuration": None}, "has no ip_configuration.subnet"),
        ({"ip_configuration": []}, "has no ip_configuration.subnet"),
        ({"ip_configuration": {"subnet": "fd00::/8"}}, "expected an IPv4 network"),
        ({"ip_configuration": {"subnet": "\x1b[2J"}}, r"subnet is '\\x1b\[2J'"),
        ({"ip_configuration": {"subnet": "10.0.0.0/31"}}, "no address to give out"),
    ],
)
def test_what_cannot_be_here_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(NativertError, match=reason) as refused:
        virtual_networks.decode(NET, described(**fields))
    assert refused.value.code is Code.NETWORK


@given(st.dictionaries(KEYS, JSON))
def test_any_object_is_a_network_or_refused(value: dict[str, Any]) -> None:
    try:
        assert virtual_networks.decode(NET, value).uuid == NET
    except NativertError:
        pass
