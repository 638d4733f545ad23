"""What one node has on the host, counted before, while it runs, and after.

Only what is this node's counts: other nodes and the host may change meanwhile. Things with a
name carry the node's tag; processes and namespaces are remembered while they are there.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

NAMESPACES = ("net", "mnt", "pid", "ipc", "uts", "user", "cgroup")
FORWARDING = "ip_forward is on"
KINDS = (
    "processes",
    "namespaces",
    "cgroups",
    "mounts",
    "links",
    "nftables tables",
    "files",
    FORWARDING,
)


class Traces:
    """The traces of the node at *root*, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tag = ""
        self._node = ""
        self._processes: set[tuple[int, str]] = set()
        self._namespaces: set[str] = set()
        self._looked = 0.0
        # Whole directories of nativert's, since a node with a root of its own has one file there.
        self._host_files = [path for path in host_files() if path.exists()]
        self._alone = True
        self._counts: list[dict[str, int]] = [count(self._find())]

    def during(self) -> None:
        """Look while the node has an instance."""
        node = json.loads((self._root / "var/lib/nativert/node.json").read_text())
        self._tag, self._node = node["tag"], node["id"]
        for pid in pids():
            if f"nativert-{self._tag}" in read(f"/proc/{pid}/cgroup"):
                self._processes.add((pid, start(pid)))
                self._namespaces |= namespaces(pid) - namespaces("self")
        self._looked = float(read("/proc/uptime").split()[0]) * os.sysconf("SC_CLK_TCK")
        self._counts.append(count(self._find()))

    def after(self) -> list[str]:
        """Look when everything should be gone; return what is not."""
        found = self._find()
        self._counts.append(count(found))
        return [] if all(before == after for _, before, _, after in self.rows()) else found

    def rows(self) -> Iterator[tuple[str, int, int, int]]:
        """Yield kind and counts; where the node never ran, "while running" is as before."""
        before, *_, after = self._counts
        during = self._counts[1] if len(self._counts) > 2 else before
        for kind in KINDS:
            if kind == FORWARDING and not self._alone:
                continue
            yield kind, before[kind], during[kind], after[kind]

    def _was_there(self, pid: int) -> bool:
        began = start(pid)
        return began != "" and int(began) <= self._looked

    def _nodes(self) -> set[str]:
        try:
            return set(json.loads(read("/var/lib/nativert/host.json"))["nodes"]) - {self._node}
        except ValueError:
            return set()

    def _find(self) -> list[str]:
        return [f"{kind}: {name}" for kind in KINDS for name in self._of_kind(kind)]

    def _of_kind(self, kind: str) -> list[str]:
        if kind == FORWARDING:
            # One switch for the host: where there is another node, it may need it on.
            others = {name for name in links() if name.startswith("nrt-")} - {f"nrt-{self._tag}"}
            self._alone = self._alone and not others and not self._nodes()
            return ["net.ipv4.ip_forward"] if read(FORWARD).strip() == "1" else []
        if kind == "files":
            return self._files()
        if not self._tag:
            return []
        if kind == "processes":
            return [f"{pid}" for pid, began in self._processes if start(pid) == began]
        if kind == "namespaces":
            # The kernel gives the numbers of namespaces again: of a later process it is another.
            held = set().union(*(namespaces(pid) for pid in pids() if self._was_there(pid)))
            return sorted(self._namespaces & held)
        if kind == "cgroups":
            return [
                directory
                for top in cgroup_mounts()
                for directory, _, _ in os.walk(f"{top}/nativert-{self._tag}")
            ]
        if kind == "mounts":
            lines = read("/proc/self/mountinfo").splitlines()
            return [line for line in lines if str(self._root) in line]
        if kind == "links":
            return [name for name in links() if self._tag in name]
        nft = ["nft", "list", "tables"]
        listed = subprocess.run(nft, capture_output=True, text=True, check=False)
        return [line for line in listed.stdout.splitlines() if self._tag in line]

    def _files(self) -> list[str]:
        found = [str(path) for path in self._root.rglob("*")]
        found += [str(p) for p in host_files() if p.exists() and p not in self._host_files]
        if self._node and self._node in read("/var/lib/nativert/host.json"):
            found.append(f"/var/lib/nativert/host.json: node {self._node}")
        return found


FORWARD = "/proc/sys/net/ipv4/ip_forward"


def count(found: list[str]) -> dict[str, int]:
    """Return how many there are of each kind."""
    return {kind: sum(line.startswith(f"{kind}: ") for line in found) for kind in KINDS}


def host_files() -> Iterator[Path]:
    """Yield what a node with a root of its own may make outside of it."""
    for top in ("/var/lib/nativert", "/run/nativert", "/etc/nativert", "/run/nativert.host.lock"):
        yield Path(top)


def links() -> list[str]:
    """Return the names of the host's links."""
    return [name for _, name in socket.if_nameindex()]


def cgroup_mounts() -> list[str]:
    """Return where cgroup hierarchies are mounted."""
    lines = read("/proc/self/mountinfo").splitlines()
    return [line.split()[4] for line in lines if line.partition(" - ")[2].startswith("cgroup")]


def pids() -> list[int]:
    """Return the processes that are there."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def start(pid: int) -> str:
    """Return a process's start time, which tells it from a later one; "" for what is dead."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] not in "ZX" else ""


def namespaces(pid: int | str) -> set[str]:
    """Return the namespaces of a process, such as ``net:[4026531840]``."""
    found = set()
    for name in NAMESPACES:
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/{name}"))
        except OSError:
            continue
    return found


def read(path: str) -> str:
    """Return a file's text; "" where it is not."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
