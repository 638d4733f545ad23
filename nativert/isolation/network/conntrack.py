"""Forgetting the flows that were led to an address; see nf_conntrack, ctnetlink.

A flow keeps the translation of its first packet. Without this a client that goes on sending
from the same port (UDP, every few seconds) reaches an address whose port was withdrawn, and
whoever has that address next.
"""

from __future__ import annotations

import errno
import socket
import struct
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
_CTA_IP_V4_SRC: Final = 1
_CTA_FILTER_REPLY_FLAGS: Final = 2
_CTA_FILTER_F_CTA_IP_SRC: Final = 1
_NFGENMSG: Final = struct.pack("=BBH", socket.AF_INET, 0, 0)


def forget(address: str) -> int:
    """Drop every flow that the address answers; return how many there were."""
    source = socket.inet_aton(address)
    # The kernel filters since 5.8: a busy gateway has a hundred thousand flows.
    filtered = (
        _NFGENMSG
        + attribute(
            _CTA_TUPLE_REPLY | _NESTED,
            attribute(_CTA_TUPLE_IP | _NESTED, attribute(_CTA_IP_V4_SRC, source)),
        )
        + attribute(
            _CTA_FILTER | _NESTED,
            attribute(_CTA_FILTER_REPLY_FLAGS, struct.pack("=I", _CTA_FILTER_F_CTA_IP_SRC)),
        )
    )
    forgotten = 0
    with Netlink(NETLINK_NETFILTER) as netlink:
        try:
            [flows] = netlink.transact([Request(_GET, NLM_F_DUMP, filtered, "list flows", address)])
        except OSError as e:
            # A kernel without ctnetlink; the flows end by their time-outs.
            if e.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return 0
            raise
        for flow in flows:
            found = attributes(flow[len(_NFGENMSG) :])
            if _source(found.get(_CTA_TUPLE_REPLY, b"")) != source:
                continue
            body = _NFGENMSG + attribute(_CTA_TUPLE_ORIG | _NESTED, found[_CTA_TUPLE_ORIG])
            for kind in (_CTA_ID, _CTA_ZONE):
                if kind in found:
                    body += attribute(kind, found[kind])
            try:
                netlink.transact([Request(_DELETE, 0, body, "forget flow", address)])
                forgotten += 1
            except FileNotFoundError:
                pass  # it ended meanwhile
    return forgotten


def _source(reply: bytes) -> bytes:
    return attributes(attributes(reply).get(_CTA_TUPLE_IP, b"")).get(_CTA_IP_V4_SRC, b"")
