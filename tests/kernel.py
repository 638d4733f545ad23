"""What this machine offers to the tests; each probe answers with the reason why not, or "".

As a program it prints the hierarchy: v1, hybrid, v2 or none.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21

# The controllers without which the limits of an instance cannot be tested.
CONTROLLERS = frozenset({"cpu", "cpuset", "memory", "pids"})

# A veth pair, a bridge and a table in namespaces of their own: what the network needs.
NETNS_TRIAL = """
set -e
ip link add nrt-trial type bridge
ip link add nv-trial type veth peer name eth0
ip link set nv-trial master nrt-trial
nft add table ip nativert_trial
nft add chain ip nativert_trial nat '{ type nat hook prerouting priority -100; }'
"""


@functools.cache
def controllers() -> tuple[frozenset[str], frozenset[str] | None]:
    """Return the controllers of the mounted v1 hierarchies and of cgroup2 (None: not mounted)."""
    legacy: set[str] = set()
    unified: frozenset[str] | None = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        fstype, _, options = rest.split()
        if fstype == "cgroup":
            legacy.update(options.split(","))
        elif fstype == "cgroup2":
            root = Path(fields.split()[4])
            unified = frozenset((root / "cgroup.controllers").read_text().split())
    return frozenset(legacy), unified


def hierarchy() -> str:
    """Return v1, hybrid or v2 as cgroups(7) uses the words, "none" without the controllers."""
    legacy, unified = controllers()
    if legacy >= CONTROLLERS:
        return "v1" if unified is None else "hybrid"
    return "v2" if unified is not None and unified >= CONTROLLERS else "none"


@functools.cache
def root() -> str:
    """Real root: not merely uid 0 of a user namespace, and not stripped of its capabilities."""
    if os.geteuid() != 0:
        return "needs root"
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        return "needs the initial user namespace"
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    for bit, name in ((CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_SYS_ADMIN, "CAP_SYS_ADMIN")):
        if not effective >> bit & 1:
            return f"needs {name}"
    return ""


def cgroup_v1() -> str:
    return "" if hierarchy() in ("v1", "hybrid") else "needs the v1 controllers"


def cgroup_v2() -> str:
    return "" if hierarchy() == "v2" else "needs the controllers on the unified hierarchy"


def unified() -> str:
    return "needs a cgroup2 mount" if controllers()[1] is None else ""


@functools.cache
def netns() -> str:
    if missing := root() or _missing("unshare", "ip", "nft"):
        return missing
    trial = ["unshare", "--net", "--mount", "sh", "-c", NETNS_TRIAL]
    done = subprocess.run(trial, capture_output=True, text=True, timeout=30)
    return f"needs veth, bridge and nftables: {done.stderr.strip()}" if done.returncode else ""


def apps() -> str:
    return _missing("redis-server", "nginx", "gcc")


def bench() -> str:
    return _missing("crun", "runc", "bwrap")


def systemd() -> str:
    return "" if Path("/run/systemd/system").is_dir() else "needs systemd as PID 1"


def vm() -> str:
    return "" if os.environ.get("NATIVERT_VM") else "needs a machine of scripts/vm-test"


def reboot() -> str:
    return "" if os.environ.get("NATIVERT_BOOT") else "needs scripts/vm-test --reboot"


def peer() -> str:
    return "" if os.environ.get("NATIVERT_PEER") else "needs scripts/vm-test --nodes 2"


def vagrant() -> str:
    return _missing("vagrant")


def _missing(*programs: str) -> str:
    # Debian keeps some of these in sbin, which a plain PATH may lack.
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    absent = [program for program in programs if shutil.which(program, path=path) is None]
    return f"needs {', '.join(absent)}" if absent else ""


PROBES: dict[str, Callable[[], str]] = {
    probe.__name__: probe
    for probe in (
        *(root, cgroup_v1, cgroup_v2, unified, netns, apps, bench),
        *(systemd, vm, reboot, peer, vagrant),
    )
}


if __name__ == "__main__":
    sys.stdout.write(hierarchy() + "\n")
