"""What nodes tell of the overlay, and which way packets go by it."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from nativert.agent import config
from nativert.agent.overlay import place, words
from nativert.agent.overlay.words import Word
from nativert.errors import NativertError
from nativert.runtime.overlay import plan as plans

A, B, C = sorted(str(uuid4()) for _ in range(3))
OWN = IPv4Network("10.70.0.0/22")


def word(number: int, here: dict[str, int] | None = None, **fields: object) -> Word:
    made = Word(
        subnet=f"10.7{number}.0.0/22",
        address=f"192.0.2.{number + 1}",
        vni=1,
        port=4789,
        here=here or {},
    )
    return msgspec.structs.replace(made, **fields)


def ways(own: dict[str, int], **others: dict[str, int]) -> dict[str, str]:
    """Return the gateway by network for the node of pool 10.70.0.0/22; others are 1, 2, ..."""
    told = {node: word(n, here) for n, (node, here) in enumerate(others.items(), 1)}
    made = words.planned(A, word(0, own), told)
    return {str(net): way for net, way in plans.destinations(made, OWN).items()}


POOLS = {"10.71.0.0/22": "10.71.0.1", "10.72.0.0/22": "10.72.0.1"}


def test_a_word_travels() -> None:
    said = word(1, {"10.80.0.2": 4})
    assert words.decode(words.encode(said)) == said


@pytest.mark.parametrize(
    "wrong",
    [
        {"subnet": "10.70.0.0/16"},
        {"subnet": "192.168.0.0/22"},
        {"subnet": "10.70.0.1/22"},
        {"subnet": "10.70.0.0/22; drop"},
        {"address": "127.0.0.1"},
        {"address": "0.0.0.0"},
        {"address": "224.0.0.1"},
        {"address": "10.70.0.9"},
        {"address": "::1"},
        {"address": "host"},
        {"here": {"8.8.8.8": 1}},
        {"here": {"10.70.0.0/24": 1}},
        {"here": {f"10.{64 + n // 65536}.{n // 256 % 256}.{n % 256}": 1 for n in range(10_001)}},
        {"vni": "1"},
    ],
)
def test_what_no_node_would_say_is_refused(wrong: dict[str, object]) -> None:
    said = msgspec.to_builtins(word(1)) | wrong
    with pytest.raises(NativertError, match="not a word of the overlay"):
        words.decode(msgspec.json.encode(said))


def test_what_is_too_long_is_not_read() -> None:
    with pytest.raises(NativertError, match="too long"):
        words.decode(b" " * (2 << 20))


def test_nodes_that_cannot_be_told_apart_are_not_joined() -> None:
    told = {B: word(1), C: word(2, subnet="10.71.0.0/22")}
    made = words.planned(A, word(0), told)
    assert [peer.node for peer in made.peers] == [B]
    assert made.refused == {C: f"its pool 10.71.0.0/22 is that of node {B}"}
    assert words.planned(A, word(0), {B: word(1, subnet="10.70.0.0/22")}).refused[B]
    assert words.planned(A, word(0), {B: word(1, address="192.0.2.1")}).refused[B]
    assert words.planned(A, word(0), {B: word(1, vni=2)}).refused == {
        B: "it has VNI 2 on port 4789"
    }


def test_each_pool_is_behind_its_node() -> None:
    assert ways({}, b={}, c={}) == POOLS


@pytest.mark.parametrize(
    ("own", "b", "c", "single"),
    [
        # Ours is on the second node; theirs is here, or on the third.
        ({}, {"10.70.0.9": 1}, {}, {"10.70.0.9/32": "10.71.0.1"}),
        ({"10.71.0.9": 1}, {}, {}, {"10.71.0.9/32": ""}),
        ({}, {}, {"10.71.0.9": 1}, {"10.71.0.9/32": "10.72.0.1"}),
        # At home the pool leads to it.
        ({"10.70.0.9": 2}, {}, {}, {}),
        ({}, {"10.71.0.9": 2}, {}, {}),
        # Who has not heard yet has the older epoch.
        ({"10.70.0.9": 2}, {"10.70.0.9": 1}, {}, {}),
        ({"10.70.0.9": 0}, {"10.70.0.9": 1}, {}, {"10.70.0.9/32": "10.71.0.1"}),
        ({}, {"10.70.0.9": 1}, {"10.70.0.9": 2}, {"10.70.0.9/32": "10.72.0.1"}),
        ({}, {"10.71.0.9": 4}, {"10.71.0.9": 3}, {}),
        # Its home is not known, or not there any more.
        ({}, {"10.99.0.9": 1}, {}, {"10.99.0.9/32": "10.71.0.1"}),
        ({"10.99.0.9": 1}, {}, {}, {"10.99.0.9/32": ""}),
    ],
)
def test_what_has_moved_has_a_way_of_its_own(
    own: dict[str, int], b: dict[str, int], c: dict[str, int], single: dict[str, str]
) -> None:
    assert ways(own, b=b, c=c) == POOLS | single


def test_a_plan_is_of_its_boot(tmp_path: Path) -> None:
    path = tmp_path / "net" / "overlay.json"
    assert plans.read(path) is None
    made = words.planned(A, word(0, {"10.71.0.9": 1}), {B: word(1)})
    plans.write(path, made)
    assert plans.read(path) == made
    assert plans.foreign(made, OWN) == ["10.71.0.9"]
    plans.write(path, msgspec.structs.replace(made, boot_id="another"))
    assert plans.read(path) is None
    path.write_bytes(b"{")
    assert plans.read(path) is None


TLS = """[zenoh]
listen = ["tls/10.0.0.1:7447"]
[zenoh.tls]
ca = "ca"
certificate = "certificate"
key = "key"
"""


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        ("[zenoh]", None),
        ('[zenoh]\nlisten = ["tcp/198.18.0.1:7447"]\ninsecure = true', "198.18.0.1"),
        ('[zenoh]\nlisten = ["tcp/127.0.0.1:7447", "tcp/10.0.0.1:1"]\ninsecure = true', "10.0.0.1"),
        ('[zenoh]\nlisten = ["tcp/10.0.0.1:1"]\ninsecure = true\n[overlay]\nenabled = false', None),
        ('[zenoh]\n[overlay]\naddress = "10.0.0.9"', "10.0.0.9"),
        ('[zenoh]\nlisten = ["tcp/[::1]:7447"]', None),
        (TLS, None),
        (TLS + "[overlay]\nenabled = true", "10.0.0.1"),
    ],
)
def test_where_tunnels_end(text: str, address: str | None) -> None:
    assert place.of(config.parse(text.encode(), source="test")) == address


def test_who_listens_everywhere_asks_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def towards(address: str) -> str:
        asked.append(address)
        return "" if address == "10.0.0.2" else "10.0.0.1"

    monkeypatch.setattr(place, "_towards", towards)
    text = '[zenoh]\nlisten = ["tcp/0.0.0.0:1"]\nconnect = ["tcp/10.0.0.2:1"]\ninsecure = true'
    assert place.of(config.parse(text.encode(), source="test")) == "10.0.0.1"
    assert asked == ["10.0.0.2", "192.0.2.1"]


@pytest.mark.parametrize(
    "wrong",
    ["vni = 0", "vni = 16777216", "port = 0", "port = 65536", 'address = "127.0.0.1"',
     'address = "edge"', "mtu = 1"],
)  # fmt: skip
def test_what_is_no_overlay_is_refused(wrong: str) -> None:
    with pytest.raises(NativertError, match="overlay"):
        config.parse(f"[zenoh]\n[overlay]\n{wrong}\n".encode(), source="test")
