"""The host's links as fog05 describes them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import psutil

from nativert.runtime.named_networks import uplink

_SYS: Final = "/sys/class/net"
_ARPHRD_LOOPBACK: Final = 772
# By the name, where the kernel has no word for it.
_PREFIXES: Final = (
    ("docker", "container bridge"),
    ("virbr", "virtual bridge"),
    ("ppp", "ppp"),
    ("veth", "virtual"),
    ("vnet", "virtual"),
    ("nv", "virtual"),
)


def check(name: str) -> None:
    """Refuse a name that no link has: ENODEV."""
    if "/" in name or name in ("", ".", "..") or not os.path.isdir(f"{_SYS}/{name}"):
        raise OSError(errno.ENODEV, "no such link", name)


def kind(name: str) -> str:
    """Return fog05's word for the kind of a link, by what the kernel says; ENODEV."""
    check(name)
    path = f"{_SYS}/{name}"
    if int(Path(path, "type").read_text()) == _ARPHRD_LOOPBACK:
        return "loopback"
    word = next((word for prefix, word in _PREFIXES if name.startswith(prefix)), "")
    if os.path.isdir(f"{path}/bridge"):
        return word if "bridge" in word else "bridge"
    if os.path.isdir(f"{path}/wireless"):
        return "wireless"
    if os.path.exists(f"{path}/tun_flags"):
        # IFF_TAP of linux/if_tun.h
        return "tap" if int(Path(path, "tun_flags").read_text(), 16) & 2 else "tunnel"
    if word:
        return word
    if os.path.exists(f"{path}/device"):
        return "ethernet"
    virtual = os.path.realpath(path).startswith("/sys/devices/virtual/")
    return "virtual" if virtual else "unknown"


def all_of_host(unavailable: Collection[str]) -> list[dict[str, Any]]:
    """Return every link with its addresses; speed in Mbit/s, 0 where it has none."""
    addresses, states = psutil.net_if_addrs(), psutil.net_if_stats()
    try:
        default = uplink()
    except OSError:
        default = ""
    found = []
    for name, has in addresses.items():
        if name not in states:
            continue  # Gone between the two questions.
        mac = next((a.address for a in has if a.family == psutil.AF_LINK), "")
        found.append(
            {
                "intf_name": name,
                "intf_mac_address": mac,
                "intf_speed": states[name].speed,
                "type": _kind_or_unknown(name),
                "available": name not in unavailable,
                "default_gw": name == default,
                "intf_configuration": configuration(name, has),
            }
        )
    return found


def _kind_or_unknown(name: str) -> str:
    try:
        return kind(name)
    except OSError:
        return "unknown"


def configuration(name: str, has: list[Any] | None = None) -> dict[str, str]:
    """Return a link's first IPv4 and IPv6 address, "" where it has none."""
    has = psutil.net_if_addrs().get(name, []) if has is None else has
    v4 = next((a for a in has if a.family == socket.AF_INET), None)
    v6 = next((a for a in has if a.family == socket.AF_INET6), None)
    return {
        "ipv4_address": "" if v4 is None else v4.address,
        "ipv4_netmask": "" if v4 is None else v4.netmask or "",
        "ipv4_gateway": _gateway(name),
        "ipv6_address": "" if v6 is None else v6.address.partition("%")[0],
        "ipv6_netmask": "" if v6 is None else v6.netmask or "",
    }


def management_address() -> dict[str, str]:
    """Return the addresses of the link of the default route; ENODEV without any."""
    has = configuration(uplink())
    return {"v4": has["ipv4_address"], "v6": has["ipv6_address"]}


def _gateway(name: str) -> str:
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        link, destination, gateway, *_ = line.split()
        if link == name and destination == "00000000":
            # In the byte order of the host; see proc(5).
            return socket.inet_ntoa(bytes.fromhex(gateway)[::-1])
    return ""
