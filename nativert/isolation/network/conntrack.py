"""Forgetting flows whose translation is out of date; see nf_conntrack, ctnetlink.

A flow keeps the translation of its first packet for as long as it is used. A client that goes
on sending from one port (UDP, every few seconds) would go on reaching an address whose port
was withdrawn, and whoever has that address next; or, having begun before the port was
published, never reach the instance.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import Final

from nativert.isolation.network.netlink import (
    NETLINK_NETFILTER,
    NLM_F_DUMP,
    Netlink,
    Request,
    attribute,
    attributes,
)

_NESTED: Final = 0x8000
_GET: Final = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_DELETE: Final = 1 << 8 | 2
_CTA_TUPLE_ORIG: Final = 1
_CTA_TUPLE_REPLY: Final = 2
_CTA_ID: Final = 12
_CTA_ZONE: Final = 18
_CTA_FILTER: Final = 25
_CTA_TUPLE_IP: Final = 1
_CTA_TUPLE_PROTO: Final = 2
_CTA_IP_V4_SRC: Final = 1
_CTA_IP_V4_DST: Final = 2
_CTA_PROTO_NUM: Final = 1
_CTA_PROTO_DST_PORT: Final = 3
_CTA_FILTER_ORIG_FLAGS: Final = 1
_CTA_FILTER_REPLY_FLAGS: Final = 2
_BY_IP_SRC: Final = 1 << 0
_BY_PROTO_NUM: Final = 1 << 3
_BY_PROTO_DST_PORT: Final = 1 << 5
_NFGENMSG: Final = struct.pack("=BBH", socket.AF_INET, 0, 0)


def forget_answered_by(address: str) -> int:
    """Drop every flow that the address answers; return how many there were."""
    source = socket.inet_aton(address)
    tuple_ip = _nest(_CTA_TUPLE_IP, attribute(_CTA_IP_V4_SRC, source))
    chosen = _nest(_CTA_TUPLE_REPLY, tuple_ip)
    chosen += _filter(_CTA_FILTER_REPLY_FLAGS, _BY_IP_SRC)
    return _forget(chosen, lambda _, reply: reply.get(_CTA_IP_V4_SRC) == source, address)


def forget_untranslated_udp(port: int) -> int:
    """Drop every UDP flow to the host's own port; return how many there were."""
    number = struct.pack("!H", port)
    proto = attribute(_CTA_PROTO_NUM, bytes([socket.IPPROTO_UDP]))
    proto += attribute(_CTA_PROTO_DST_PORT, number)
    chosen = _nest(_CTA_TUPLE_ORIG, _nest(_CTA_TUPLE_PROTO, proto))
    chosen += _filter(_CTA_FILTER_ORIG_FLAGS, _BY_PROTO_NUM | _BY_PROTO_DST_PORT)

    def stale(orig: dict[int, bytes], reply: dict[int, bytes]) -> bool:
        # What the host only passes on (a sibling asking a resolver elsewhere) must go on.
        asked = orig.get(_CTA_IP_V4_DST, b"")
        return asked == reply.get(_CTA_IP_V4_SRC) and _is_local(asked)

    return _forget(chosen, stale, f"udp port {port}")


def _forget(
    chosen: bytes, stale: Callable[[dict[int, bytes], dict[int, bytes]], bool], subject: str
) -> int:
    forgotten = 0
    with Netlink(NETLINK_NETFILTER) as netlink:
        # The kernel filters since 5.8: a busy gateway has a hundred thousand flows.
        request = Request(_GET, NLM_F_DUMP, _NFGENMSG + chosen, "list flows", subject)
        try:
            [flows] = netlink.transact([request])
        except OSError as e:
            # A kernel without ctnetlink; the flows end by their time-outs.
            if e.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return 0
            raise
        for flow in flows:
            found = attributes(flow[len(_NFGENMSG) :])
            tuples = (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY)
            ips = [attributes(attributes(found[t]).get(_CTA_TUPLE_IP, b"")) for t in tuples]
            if not stale(*ips):
                continue
            body = _NFGENMSG + _nest(_CTA_TUPLE_ORIG, found[_CTA_TUPLE_ORIG])
            for kind in (_CTA_ID, _CTA_ZONE):
                if kind in found:
                    body += attribute(kind, found[kind])
            try:
                netlink.transact([Request(_DELETE, 0, body, "forget flow", subject)])
                forgotten += 1
            except FileNotFoundError:
                pass  # it ended meanwhile
    return forgotten


def _nest(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, value)


def _filter(flags_of: int, flags: int) -> bytes:
    return _nest(_CTA_FILTER, attribute(flags_of, struct.pack("=I", flags)))


def _is_local(address: bytes) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((socket.inet_ntoa(address), 0))
        except OSError:
            return False
    return True
