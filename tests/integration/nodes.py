"""Descriptors, nodes and waiting for the tests that run real instances."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import scale

from nativert.fdu.descriptor import Descriptor, decode
from nativert.isolation import cgroups
from nativert.isolation.cgroups import scope
from nativert.isolation.cgroups.driver import LAUNCHER, Cgroup, Driver
from nativert.runtime.node import Node
from nativert.runtime.views import End, Instance
from nativert.store.claims import Claims
from nativert.store.identity import open_identity
from nativert.store.paths import Paths

DEADLINE_S = scale.LONG_S
PYTHON = "/usr/bin/python3"
# The command with this interpreter and this tree, wherever it is installed.
CLI = (sys.executable, "-m", "nativert")

T = TypeVar("T")


class MakeNode(Protocol):
    """The fixture that opens a node; *root* defaults to the test's own."""

    def __call__(self, root: Path | None = None, **options: Any) -> Node: ...


def make_document(
    *,
    name: str = "app",
    binary: str = "/bin/sh",
    args: Sequence[str] = (),
    shell: str | None = None,
    python: str | None = None,
    veth: bool = False,
    native: Mapping[str, object] | None = None,
    **fields: object,
) -> dict[str, Any]:
    """Return a descriptor as a tree; *shell* or *python* is the text of the application."""
    command: dict[str, object] = {"binary": binary, "args": list(args)}
    if shell is not None:
        command = {"binary": "/bin/sh", "args": ["-c", shell, "sh", *args]}
    elif python is not None:
        command = {"binary": PYTHON, "args": ["-u", "-S", "-c", python, *args]}
    document: dict[str, Any] = {
        "id": name,
        "name": name,
        "command": command,
        "hypervisor": "BARE",
        "native": dict(native or {}),
    }
    if veth:
        document["interfaces"] = [{"name": "eth0"}]
    return document | fields


def make_descriptor(**fields: Any) -> Descriptor:
    """Return the descriptor of `make_document`, decoded as the CLI would."""
    return decode(json.dumps(make_document(**fields)).encode(), source="test")


def start(node: Node, **fields: Any) -> str:
    """Define, configure and run; return the UUID."""
    instance = node.define(make_descriptor(**fields)).instance
    node.configure(instance)
    node.run(instance)
    return instance


def until(
    ask: Callable[[], T], *, deadline_s: float = DEADLINE_S, what: str = "", pause_s: float = 0.01
) -> T:
    """Return the first true answer; fail after *deadline_s*. For what raises no event."""
    end = time.monotonic() + deadline_s
    while not (answer := ask()):
        if time.monotonic() > end:
            raise AssertionError(f"not so within {deadline_s:g} s: {what or ask}")
        time.sleep(pause_s)
    return answer


def log_text(node: Node, ref: str, stream: str = "") -> str:
    """Return what the application has written so far."""
    lines = (line for line in node.logs(ref) if stream in ("", line.stream))
    return "".join(
        line.text.decode(errors="replace") + ("" if line.partial else "\n") for line in lines
    )


def until_logged(node: Node, ref: str, text: str, *, deadline_s: float = DEADLINE_S) -> str:
    """Return the log once *text* is in it."""
    until(lambda: text in log_text(node, ref), deadline_s=deadline_s, what=f"{text!r} in the log")
    return log_text(node, ref)


def run_inside(node: Node, ref: str, *argv: str, **options: Any) -> tuple[int, str]:
    """Exec a program in the instance; return (exit code, stdout and stderr)."""
    output = os.memfd_create("output", os.MFD_CLOEXEC)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        session = node.exec(ref, argv, stdio=(null, output, output), **options)
        try:
            code = session.wait()
        finally:
            session.close()
        return code, os.pread(output, 1 << 20, 0).decode(errors="replace")
    finally:
        os.close(output)
        os.close(null)


def ended(row: Instance) -> End:
    """Return the end of a row that has one."""
    assert row.end is not None
    return row.end


def cgroup(node: Node, ref: str) -> Cgroup:
    """Return the cgroup of an instance."""
    driver: Driver = node._context.driver
    return driver.open(f"i-{node.get(ref).instance}")


def address(node: Node, ref: str) -> str:
    """Return the address of the instance's first interface."""
    native: Any = node.inspect(ref)["native"]
    return str(native["interfaces"][0]["address"])


def tag_of(root: Path | None) -> str:
    """Return the tag of the node under *root*, which must exist; None is the host's own."""
    return open_identity(Paths(root), Claims()).tag


def driver_of(root: Path) -> Driver:
    """Return the cgroups of the node under *root*, as it finds them itself."""
    return cgroups.detect(scope.choose(f"nativert-{tag_of(root)}").parent)


def launcher_of(root: Path) -> int:
    """Return the pid of the node's launcher; its short-lived children are waited for."""
    leaf = driver_of(root).open(LAUNCHER)
    until(lambda: len(leaf.pids()) == 1, what="one launcher, alone")
    return leaf.pids()[0]


def remove_node(root: Path, **options: Any) -> None:
    """Remove every instance of the node under *root*, then the node; fail on what stays."""
    with Node(root, **options) as node:
        for row in node.list():
            node.remove(row.instance, force=True)
        stuck = [found for found in node.gc() if not found.removed]
        assert not stuck
        assert node.gc(dry_run=True) == []
    claims = Claims()
    claims.release_node(open_identity(Paths(root), claims).id)
