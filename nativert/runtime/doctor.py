"""What this host can and cannot enforce, and the fix for each."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from nativert.errors import NativertError
from nativert.isolation.cgroups.limits import Limits
from nativert.runtime.context import Context
from nativert.runtime.network import BridgeNetwork
from nativert.runtime.views import Check

_FLOOR = (5, 10)
_MACHINES = ("x86_64", "aarch64")
_LIMITS = {
    "cpu limit": Limits(cpu_max=0.5),
    "cpu weight": Limits(cpu_weight=100),
    "cpuset": Limits(cpuset="0"),
    "memory limit": Limits(memory_max=64 << 20),
    "memory.high": Limits(memory_high=64 << 20),
    "swap limit": Limits(memory_swap=0),
    "pids limit": Limits(pids_max=64),
}


def examine(context: Context) -> list[Check]:
    """Return every check, those of the kernel first."""
    return [
        _kernel(),
        _machine(),
        *_namespaces(),
        _overlay(),
        *_cgroups(context),
        *_network(context),
        _seccomp(context),
        _store(context),
    ]


def _kernel() -> Check:
    release = platform.release()
    version = tuple(int(part) for part in release.split(".")[:2])
    return Check(
        name="kernel",
        ok=version >= _FLOOR,
        detail=release,
        fix="" if version >= _FLOOR else "Linux 5.10 or newer is needed",
    )


def _machine() -> Check:
    machine = platform.machine()
    known = machine in _MACHINES
    return Check(
        name="architecture",
        ok=known,
        detail=machine,
        fix="" if known else f"supported: {', '.join(_MACHINES)}",
    )


def _namespaces() -> Iterator[Check]:
    for name in ("net", "mnt", "pid", "ipc", "uts", "user", "cgroup"):
        there = os.path.exists(f"/proc/self/ns/{name}")
        yield Check(
            name=f"{name} namespace",
            ok=there,
            detail="in the kernel" if there else "not in the kernel",
            fix="" if there else "use a kernel that is built with it",
        )
    path = Path("/proc/sys/user/max_user_namespaces")
    if path.exists():
        count = int(path.read_text())
        yield Check(
            name="user namespaces allowed",
            ok=count > 0,
            detail=str(count),
            fix="" if count else "sysctl -w user.max_user_namespaces=65536",
        )


def _overlay() -> Check:
    loaded = "\toverlay\n" in Path("/proc/filesystems").read_text()
    try:
        modules = Path(f"/lib/modules/{platform.release()}/modules.dep").read_text()
    except OSError:
        modules = ""
    # The kernel loads the module by itself at the first mount.
    there = loaded or "/overlay.ko" in modules
    return Check(
        name="overlay file system",
        ok=there,
        detail="in the kernel" if loaded else "a module" if there else "not in the kernel",
        fix="" if there else "modprobe overlay, or use a kernel with CONFIG_OVERLAY_FS",
    )


def _cgroups(context: Context) -> Iterator[Check]:
    try:
        driver = context.driver
    except NativertError as e:
        yield Check(name="cgroups", ok=False, detail=e.message, fix=e.hint)
        return
    where = f"{driver.mode}, in {driver.parent}: {context.place.why}"
    yield Check(name="cgroups", ok=True, detail=where, fix="")
    for name, limits in _LIMITS.items():
        yield _tried(name, partial(driver.check, limits), needed=False)


def _tried(name: str, attempt: Callable[[], object], *, needed: bool = True) -> Check:
    try:
        attempt()
    except NativertError as e:
        return Check(name=name, ok=False, detail=e.message, fix=e.hint, needed=needed)
    except OSError as e:
        return Check(name=name, ok=False, detail=str(e), needed=needed)
    return Check(name=name, ok=True, detail="enforced", needed=needed)


def _network(context: Context) -> Iterator[Check]:
    nft = shutil.which("nft")
    yield Check(
        name="nft",
        ok=nft is not None,
        detail=nft or "not found",
        fix="" if nft else "apt-get install nftables",
    )
    network = context.network
    if not isinstance(network, BridgeNetwork):
        return
    if nft is not None:
        for drop in network.foreign_forward_drops():
            # Instances run and reach each other; the way from and to other hosts is shut.
            yield Check(name="forwarding", ok=False, detail=drop.what, fix=drop.mend, needed=False)
    there = network.present()
    detail = f"{network.bridge}, {context.identity.subnet}"
    yield Check(
        name="bridge", ok=True, detail=detail + ("" if there else " (not made yet)"), fix=""
    )
    yield from _overlay_network(network)
    if there:
        forward = Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()
        yield Check(
            name="ip_forward",
            ok=forward == "1",
            detail=f"{forward} (undone by gc when nothing is configured)",
            fix="" if forward == "1" else "nativert configures it with the next instance",
        )


def _overlay_network(network: BridgeNetwork) -> Iterator[Check]:
    planned = network.overlay.plan()
    if planned is None:
        return
    refused = [f"node {node}: {why}" for node, why in planned.refused.items()]
    there = network.overlay.present()
    where = f"{network.overlay.link} at {planned.address}, UDP port {planned.port}"
    joined = f"{len(planned.peers)} other nodes" if there else "removed"
    yield Check(
        name="overlay network",
        ok=there and not refused,
        detail="; ".join([f"{where}, VNI {planned.vni}: {joined}", *refused]),
        fix="an address travels only between nodes that are joined" if refused else "",
        needed=False,
    )


def _seccomp(context: Context) -> Check:
    return _tried("seccomp filter", lambda: context.seccomp)


def _store(context: Context) -> Check:
    found = context.store.check()
    return Check(
        name="store",
        ok=not found,
        detail="; ".join(found) or str(context.paths.database),
        fix="move the file away and define the instances again" if found else "",
    )
