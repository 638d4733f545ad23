"""The host-wide registry: nodes never get what another node has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from nativert.errors import Code, NativertError
from nativert.store import pools, registry
from nativert.store.claims import Claims, PortClaim
from nativert.store.identity import Identity, claim_block, open_identity
from nativert.store.paths import Paths


@dataclass
class Host:
    """A directory that stands in for a host with several nodes."""

    base: Path

    @property
    def file(self) -> Path:
        return self.base / "host.json"

    def claims(self) -> Claims:
        return Claims(self.file, self.base / "lock", subordinate_ids=(self.base / "subuid",))

    def paths(self, name: str) -> Paths:
        return Paths(self.base / name)

    def node(self, name: str) -> Identity:
        return open_identity(self.paths(name), self.claims(), in_use=tuple)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def port(number: int, host_ip: str | None = None, protocol: str = "tcp") -> PortClaim:
    return PortClaim(host_ip, number, protocol)


def test_nodes_get_blocks_and_subnets_of_their_own(host: Host) -> None:
    nodes = [host.node(f"n{n}") for n in range(5)]
    assert [node.blocks for node in nodes] == [(0,), (1,), (2,), (3,), (4,)]
    assert len({node.subnet for node in nodes}) == 5
    assert os.stat(host.file).st_mode & 0o777 == 0o600


def test_blocks_named_in_subuid_are_skipped(host: Host) -> None:
    (host.base / "subuid").write_text(f"user:{pools.ID_FIRST}:{pools.RANGE_IDS}\n")
    assert host.node("a").blocks == (1,)


def test_more_blocks_one_at_a_time_until_none_is_left(host: Host) -> None:
    first = host.node("a")
    other = host.node("b")
    more = claim_block(host.paths("a"), host.claims(), first)
    assert more.blocks == (0, 2)
    # A command that ran out at the same time shares the new block.
    assert claim_block(host.paths("a"), host.claims(), first).blocks == (0, 2)
    assert host.node("a").blocks == (0, 2)
    while len(more.blocks) < pools.BLOCKS - 1:
        more = claim_block(host.paths("a"), host.claims(), more)
    with pytest.raises(NativertError) as caught:
        claim_block(host.paths("a"), host.claims(), more)
    assert caught.value.code is Code.IDS_EXHAUSTED
    assert host.node("b") == other


def test_claims_of_a_node_whose_root_is_gone_are_dropped(host: Host) -> None:
    gone, stays = host.node("gone"), host.node("stays")
    host.claims().claim_ports(gone.id, "i1", [port(80)])
    shutil.rmtree(host.base / "gone")
    host.claims().claim_ports(stays.id, "i2", [port(80)])
    assert set(host.claims().nodes()) == {stays.id}
    assert host.node("new").blocks == gone.blocks


def test_the_file_goes_with_the_last_node(host: Host) -> None:
    a, b = host.node("a"), host.node("b")
    host.claims().claim_ports(a.id, "i", [port(80)])
    host.claims().release_node(a.id)
    assert set(host.claims().nodes()) == {b.id}
    host.claims().release_node(b.id)
    assert not host.file.exists()
    host.claims().release_node(b.id)
    # A released node finds its own subnet and blocks again.
    assert host.node("a") == a


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        (port(80), port(80), True),
        (port(80), port(81), False),
        (port(80), port(80, protocol="udp"), False),
        (port(80, "192.0.2.1"), port(80), True),
        (port(80, "0.0.0.0"), port(80, "192.0.2.1"), True),
        (port(80, "192.0.2.1"), port(80, "192.0.2.2"), False),
        (port(80, "192.0.2.1"), port(80, "192.0.2.1"), True),
    ],
)
def test_a_port_has_one_owner_on_the_host(
    one: PortClaim, other: PortClaim, collide: bool, host: Host
) -> None:
    a, b = host.node("a"), host.node("b")
    claims = host.claims()
    claims.claim_ports(a.id, "i1", [one])
    if not collide:
        claims.claim_ports(b.id, "i2", [other])
        return
    with pytest.raises(NativertError) as caught:
        claims.claim_ports(b.id, "i2", [port(9000), other])
    assert caught.value.code is Code.PORT_TAKEN
    assert "i1" in caught.value.message
    assert str(host.base / "a") in caught.value.message
    assert claims.ports(b.id) == {}, "all or none"
    claims.release_ports(a.id, "i1")
    claims.claim_ports(b.id, "i2", [other])


def test_an_instance_may_claim_its_ports_again_but_not_one_twice(host: Host) -> None:
    a = host.node("a")
    claims = host.claims()
    claims.claim_ports(a.id, "i", [port(80), port(81, "192.0.2.1")])
    claims.claim_ports(a.id, "i", [port(81, "192.0.2.1")])
    assert claims.ports(a.id) == {"i": [port(81, "192.0.2.1")]}
    with pytest.raises(NativertError) as caught:
        claims.claim_ports(a.id, "i", [port(82), port(82, "192.0.2.1")])
    assert caught.value.code is Code.PORT_TAKEN


def test_published_ports_are_void_after_a_reboot(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = host.node("a"), host.node("b")
    host.claims().claim_ports(a.id, "i1", [port(80)])
    monkeypatch.setattr("nativert.store.registry.boot_id", lambda: "next")
    monkeypatch.setattr("nativert.store.claims.boot_id", lambda: "next")
    assert host.claims().ports(a.id) == {}
    host.claims().claim_ports(b.id, "i2", [port(80)])
    assert host.node("a") == a


def test_a_node_that_is_not_registered_cannot_claim(host: Host) -> None:
    with pytest.raises(NativertError) as caught:
        host.claims().claim_ports("nobody", "i", [port(80)])
    assert caught.value.code is Code.STORE


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "directory", "two owners"])
def test_a_damaged_registry_is_put_aside_and_rebuilt(damage: str, host: Host) -> None:
    a, b = host.node("a"), host.node("b")
    data = host.file.read_bytes()
    if damage == "directory":
        host.file.unlink()
        host.file.mkdir()
    else:
        host.file.write_bytes(
            {
                "cut": data[:-4],
                "empty": b"",
                "garbage": b"\0\xff" * 100,
                "two owners": data.replace(b"   1\n", b"   0\n"),
            }[damage]
        )
    assert host.node("a") == a
    assert host.node("b") == b
    assert (host.base / "host.json.corrupt").exists()
    if damage in ("cut", "two owners"):
        # The damaged file still named both: a new node cannot take what is theirs.
        host.file.unlink()
        (host.base / "host.json.corrupt").rename(host.file)
        assert host.node("c").blocks == (2,)


@pytest.mark.parametrize("flip", range(8))
def test_flipped_bits_never_give_two_nodes_the_same(flip: int, host: Host) -> None:
    host.node("a"), host.node("b")
    data = host.file.read_bytes()
    for position in range(flip, len(data), 23):
        changed = bytearray(data)
        changed[position] ^= 1 << flip
        host.file.write_bytes(changed)
        found: list[Identity] = []
        refusals: set[Code] = set()
        for name in ("a", "b"):
            try:
                found.append(host.node(name))
            except NativertError as e:
                refusals.add(e.code)
        blocks = [block for node in found for block in node.blocks]
        assert len(blocks) == len(set(blocks)), position
        assert refusals <= {Code.STORE}, position
        for aside in host.base.glob("host.json.corrupt*"):
            aside.unlink()


def test_the_file_of_a_newer_version_is_left_alone(host: Host) -> None:
    host.node("a")
    text = '{"version": 2, "nodes": []}'
    host.file.write_text(text)
    with pytest.raises(NativertError) as caught:
        host.node("b")
    assert "newer" in caught.value.hint
    assert host.file.read_text() == text


def test_a_node_is_refused_where_another_took_its_ids_after_a_loss(host: Host) -> None:
    host.node("a")
    host.file.unlink()
    b = host.node("b")
    assert b.blocks == (0,)
    with pytest.raises(NativertError) as caught:
        host.node("a")
    assert "block 0" in caught.value.message
    assert str(host.base / "b") in caught.value.message


def test_many_commands_at_once(host: Host) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from nativert.store.claims import Claims, PortClaim\n"
        "from nativert.store.identity import open_identity\n"
        "from nativert.store.paths import Paths\n"
        "base, name = Path(sys.argv[1]), sys.argv[2]\n"
        "claims = Claims(base / 'host.json', base / 'lock', subordinate_ids=())\n"
        "node = open_identity(Paths(base / name), claims, in_use=tuple)\n"
        "claims.claim_ports(node.id, sys.argv[3], [PortClaim(None, int(sys.argv[3]), 'tcp')])\n"
        "print(node.id, node.subnet, *node.blocks)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(host.base), f"n{n % 2}", str(8000 + n)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(6)
    ]
    lines = [process.communicate(timeout=60)[0].split() for process in processes]
    assert {process.returncode for process in processes} == {0}
    assert len({tuple(line) for line in lines}) == 2, "one identity per root"
    assert len({line[1] for line in lines}) == 2
    assert len({line[2] for line in lines}) == 2
    claimed = [host.claims().ports(id_) for id_ in {line[0] for line in lines}]
    assert sorted(instance for ports in claimed for instance in ports) == [
        str(8000 + n) for n in range(6)
    ]


class Nodes(RuleBasedStateMachine):
    """Nodes come, grow, move, are removed and restored, and the registry is damaged."""

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.host = Host(Path(self.directory.name))
        self.live: dict[str, Identity] = {}
        self.ports: dict[tuple[int, str], str] = {}

    def teardown(self) -> None:
        self.directory.cleanup()

    @rule(target=names, name=st.sampled_from("abcdef"))
    def start(self, name: str) -> str:
        node = self.host.node(name)
        if name in self.live:
            assert node == self.live[name]
        self.live[name] = node
        return name

    @rule(name=names)
    def grow(self, name: str) -> None:
        if name in self.live:
            paths = self.host.paths(name)
            self.live[name] = claim_block(paths, self.host.claims(), self.live[name])

    @rule(name=consumes(names))
    def remove(self, name: str) -> None:
        if self.live.pop(name, None) is not None:
            shutil.rmtree(self.host.base / name)
            self.ports = {key: owner for key, owner in self.ports.items() if owner != name}

    @rule(name=names, number=st.integers(1, 3), protocol=st.sampled_from(["tcp", "udp"]))
    def publish(self, name: str, number: int, protocol: str) -> None:
        if name not in self.live:
            return
        instance = f"{name}-{number}-{protocol}"
        claims = self.host.claims()
        owner = self.ports.get((number, protocol))
        if owner is None or owner == name:
            claims.claim_ports(self.live[name].id, instance, [port(number, None, protocol)])
            self.ports[(number, protocol)] = name
        else:
            with pytest.raises(NativertError):
                claims.claim_ports(self.live[name].id, instance, [port(number, None, protocol)])

    @rule()
    def damage(self) -> None:
        if self.host.file.exists():
            data = self.host.file.read_bytes()
            self.host.file.write_bytes(data[:-3])
            self.ports = {}

    @invariant()
    def nothing_is_shared(self) -> None:
        blocks = [block for node in self.live.values() for block in node.blocks]
        assert len(blocks) == len(set(blocks))
        subnets: list[IPv4Network] = [node.subnet for node in self.live.values()]
        assert len(subnets) == len(set(subnets))
        tags = [node.tag for node in self.live.values()]
        assert len(tags) == len(set(tags))


TestNodes = Nodes.TestCase
TestNodes.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_an_unreadable_node_file_keeps_its_claims(host: Host) -> None:
    a = host.node("a")
    host.paths("a").node.write_text("{")
    host.node("b")
    assert a.id in host.claims().nodes()
    assert registry.owner_lives(a.id, host.paths("a").lib)
