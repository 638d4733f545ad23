"""Who a node is: made once, and never two of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from nativert.errors import Code, NativertError
from nativert.store.claims import Claims
from nativert.store.identity import Identity, open_identity
from nativert.store.paths import Paths


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(tmp_path / "host.json", tmp_path / "lock", subordinate_ids=())


def node(root: Path, claims: Claims) -> Identity:
    return open_identity(Paths(root), claims, in_use=tuple)


def test_a_node_is_made_once(tmp_path: Path, claims: Claims) -> None:
    first = node(tmp_path / "a", claims)
    assert node(tmp_path / "a", claims) == first
    assert first.tag == hashlib.sha256(first.id.encode()).hexdigest()[:6]
    assert first.name == os.uname().nodename
    assert first.gateway == str(first.subnet[1])
    written = json.loads(Paths(tmp_path / "a").node.read_text())
    assert written == {
        "id": first.id,
        "tag": first.tag,
        "name": first.name,
        "subnet": str(first.subnet),
        "blocks": [0],
        "version": 1,
    }


def test_a_known_node_writes_nothing(
    tmp_path: Path, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = node(tmp_path / "a", claims)

    def refuse(*_: object) -> None:
        raise AssertionError("a write")

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr("nativert.store.claims.Lock", refuse)
    assert node(tmp_path / "a", claims) == first


def test_the_subnet_avoids_what_the_host_uses(tmp_path: Path, claims: Claims) -> None:
    half = IPv4Network("10.64.0.0/11")
    for n in range(3):
        found = open_identity(Paths(tmp_path / f"{n}"), claims, in_use=lambda: [half])
        assert not found.subnet.overlaps(half)


def test_a_copy_of_a_living_node_is_refused_and_says_why(tmp_path: Path, claims: Claims) -> None:
    original = node(tmp_path / "a", claims)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    before = Paths(tmp_path / "copy").node.read_bytes()
    with pytest.raises(NativertError) as caught:
        node(tmp_path / "copy", claims)
    assert caught.value.code is Code.STORE
    assert str(tmp_path / "a") in caught.value.message
    assert str(tmp_path / "copy") in caught.value.hint
    assert Paths(tmp_path / "copy").node.read_bytes() == before
    assert node(tmp_path / "a", claims) == original
    # What the hint says helps.
    shutil.rmtree(Paths(tmp_path / "copy").lib)
    assert node(tmp_path / "copy", claims).id != original.id


def test_a_moved_root_keeps_its_identity(tmp_path: Path, claims: Claims) -> None:
    original = node(tmp_path / "a", claims)
    os.rename(tmp_path / "a", tmp_path / "b")
    assert node(tmp_path / "b", claims) == original
    assert claims.nodes()[original.id].path == str(Paths(tmp_path / "b").lib)


def test_another_path_to_the_same_directory_is_no_copy(tmp_path: Path, claims: Claims) -> None:
    original = node(tmp_path / "a", claims)
    os.symlink(tmp_path / "a", tmp_path / "link")
    assert node(tmp_path / "link", claims) == original


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b'{"version": 1}', b'{"id": 3}'])
def test_a_damaged_node_file_is_restored_from_the_registry(
    damage: bytes, tmp_path: Path, claims: Claims
) -> None:
    original = node(tmp_path / "a", claims)
    paths = Paths(tmp_path / "a")
    paths.node.write_bytes(damage)
    assert node(tmp_path / "a", claims) == original
    assert (paths.lib / "node.json.corrupt").read_bytes() == damage


def test_a_damaged_node_file_that_nobody_knows_is_refused(tmp_path: Path, claims: Claims) -> None:
    node(tmp_path / "a", claims)
    claims.path.unlink()
    Paths(tmp_path / "a").node.write_bytes(b"{")
    with pytest.raises(NativertError) as caught:
        node(tmp_path / "a", claims)
    assert caught.value.code is Code.STORE
    assert Paths(tmp_path / "a").node.read_bytes() == b"{"


def test_the_node_file_of_a_newer_version_is_refused(tmp_path: Path, claims: Claims) -> None:
    node(tmp_path / "a", claims)
    Paths(tmp_path / "a").node.write_text('{"version": 2}')
    with pytest.raises(NativertError) as caught:
        node(tmp_path / "a", claims)
    assert "newer" in caught.value.hint


@pytest.mark.parametrize("step", ["claim", "node file"])
def test_a_first_start_that_was_cut_off_is_begun_again(
    step: str, tmp_path: Path, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = {"claim": claims.path, "node file": Paths(tmp_path / "a").node}[step]
    real = os.rename

    def rename(source: str, destination: Path) -> None:
        if Path(destination) == target:
            raise KeyboardInterrupt
        real(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            node(tmp_path / "a", claims)
    assert not Paths(tmp_path / "a").node.exists()
    found = node(tmp_path / "a", claims)
    assert found.blocks == (0,)
    assert set(claims.nodes()) == {found.id}
