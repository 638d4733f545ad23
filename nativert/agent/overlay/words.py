"""What nodes tell each other of the overlay, and which of them can be joined. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Final

import msgspec

from nativert.errors import Code, NativertError
from nativert.fdu.known import known
from nativert.runtime.overlay.plan import Peer, Plan
from nativert.runtime.overlay.tunnel import mac_of
from nativert.store.boot import boot_id
from nativert.store.identity import tag_of
from nativert.store.pools import POOL, SUBNET_PREFIX

_MOST_BYTES: Final = 1 << 20
_MOST_HERE: Final = 10_000


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself: its pool, where tunnels to it end, the moved addresses it has.

    `here` has for each address the epoch of the migration that brought it.
    """

    subnet: str
    address: str
    vni: int
    port: int
    here: dict[str, int] = {}


def encode(word: Word) -> bytes:
    """Return *word* as it travels."""
    return msgspec.json.encode(word, order="sorted")


def decode(data: bytes) -> Word:
    """Return the word in *data*; NativertError(DESCRIPTOR) for what no node would say."""
    if len(data) > _MOST_BYTES:
        raise NativertError("what it tells of the overlay is too long", code=Code.DESCRIPTOR)
    try:
        word = msgspec.json.decode(data, type=known(Word))
        pool, address = IPv4Network(word.subnet), IPv4Address(word.address)
        here = [IPv4Address(each) for each in word.here]
    except (msgspec.DecodeError, ValueError) as e:
        raise NativertError(f"not a word of the overlay: {e}", code=Code.DESCRIPTOR) from None
    if not pool.subnet_of(POOL) or pool.prefixlen != SUBNET_PREFIX:
        wrong = f"{pool} is not a /{SUBNET_PREFIX} of {POOL}"
    elif address.is_loopback or address.is_multicast or address.is_unspecified or address in POOL:
        wrong = f"{address} is no address of a host"
    elif len(here) > _MOST_HERE or not all(each in POOL for each in here):
        wrong = f"what has moved there is not of {POOL}"
    else:
        return word
    raise NativertError(f"not a word of the overlay: {wrong}", code=Code.DESCRIPTOR)


def planned(own: str, said: Word, words: Mapping[str, Word]) -> Plan:
    """Return what follows for the node *own*, which says *said*, from the *words* of others by id.

    Two nodes with one pool, or one address, cannot be told apart: of two others the one with the
    smaller id is joined.
    """
    peers: list[Peer] = []
    refused: dict[str, str] = {}
    ours = _peer(own, said)
    for node, word in sorted(words.items()):
        peer = _peer(node, word)
        if (word.vni, word.port) != (said.vni, said.port):
            refused[node] = f"it has VNI {word.vni} on port {word.port}"
        elif clash := next((c for each in (ours, *peers) if (c := _clash(peer, each))), ""):
            refused[node] = clash
        else:
            peers.append(peer)
    return Plan(
        boot_id=boot_id(),
        vni=said.vni,
        port=said.port,
        address=said.address,
        here=dict(said.here),
        peers=tuple(peers),
        refused=refused,
    )


def _peer(node: str, word: Word) -> Peer:
    return Peer(
        node=node,
        mac=mac_of(tag_of(node)),
        subnet=word.subnet,
        address=word.address,
        here=word.here,
    )


def _clash(peer: Peer, other: Peer) -> str:
    if IPv4Network(peer.subnet).overlaps(IPv4Network(other.subnet)):
        return f"its pool {peer.subnet} is that of node {other.node}"
    if peer.address == other.address:
        return f"its address {peer.address} is that of node {other.node}"
    if peer.mac == other.mac:
        return f"its tag is that of node {other.node}"
    return ""
