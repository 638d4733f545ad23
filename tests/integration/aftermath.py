"""An instance in the state that a test wants, and what node and host have of it after a fault."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import scale
from nodes import driver_of, make_descriptor, run_inside, until

from nativert.isolation import process
from nativert.isolation.cgroups.driver import INIT, Driver
from nativert.runtime.node import Node
from nativert.store.claims import Claims
from nativert.store.identity import open_identity
from nativert.store.paths import Paths

PORT = 22000 + os.getpid() % 500
FOREVER = "echo up; exec sleep 1000"
MIB = 1 << 20


def app(**fields: Any) -> dict[str, Any]:
    """A descriptor that makes configure pass every step."""
    return {
        "name": "app",
        "shell": FOREVER,
        "veth": True,
        "configuration": {"conf_type": "SCRIPT", "script": "echo configured > /data/made"},
        "native": {
            "memory": {"max": "64M"},
            "stop": {"grace": "2s"},
            "network": {"ports": [f"{PORT}:80"]},
        },
        **fields,
    }


def driver(root: Path) -> Driver:
    return driver_of(root)


def facts_path(root: Path, uuid: str) -> Path:
    return Paths(root).instance_run(uuid) / "boot.json"


def facts(root: Path, uuid: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(facts_path(root, uuid).read_text())
    return found


def alter_facts(root: Path, uuid: str, **changes: object) -> None:
    facts_path(root, uuid).write_text(json.dumps(facts(root, uuid) | changes))


def kill(pid: int, *, held: bool = False) -> None:
    """Kill and wait for the end; of an init that is *held* by the v1 freezer for its beginning."""
    start = process.start_time(pid)
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if held:
            until(lambda: not process.alive(pid, start), what=f"the end of {pid}")
        else:
            assert process.wait_end(pidfd, 10.0)
    finally:
        os.close(pidfd)


def left_of(node: Node, root: Path, uuid: str) -> list[str]:
    """What the host still has of an instance that has nothing configured."""
    row = next((r for r in node._context.store.rows() if r.uuid == uuid), None)
    found = [f"cgroup {name}" for name in driver(root).names() if uuid in name]
    found += [f"init {pid}" for pid in driver(root).open(INIT).pids()]
    if row is not None:
        links = node._context.network.links()
        names = [node._context.link_name(interface.link) for interface in row.interfaces]
        found += [f"link {name}" for name in names if name in links]
        found += [f"port {port}" for port in node._context.network.published()]
    identity = open_identity(Paths(root), Claims())
    found += [f"claim {uuid}"] if uuid in Claims().ports(identity.id) else []
    if Paths(root).instance_run(uuid).exists():
        found.append("run directory")
    if (Paths(root).instance_lib(uuid) / "image").exists():
        found.append("image")
    return found


def assert_nothing_left(node: Node, root: Path, uuid: str) -> None:
    # A link is deleted in the background.
    until(
        lambda: not left_of(node, root, uuid),
        what=f"nothing left of {uuid}",
        deadline_s=scale.LONG_S,
    )


def live_on(node: Node, uuid: str) -> None:
    """Take the instance from wherever it is through the rest of a life."""
    state = node.get(uuid).state
    if state == "PAUSED":
        state = node.resume(uuid).state
    if state == "RUNNING":
        assert run_inside(node, uuid, "true") == (0, "")
        state = node.stop(uuid).state
    if state == "CONFIGURED":
        state = node.clean(uuid).state
    assert state == "DEFINED"
    node.configure(uuid)
    node.run(uuid)
    assert node.stop(uuid).state == "CONFIGURED"
    node.clean(uuid)
    node.undefine(uuid)


OPERATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    # operation: the state before it, and its arguments
    "define": ("", {}),
    "configure": ("DEFINED", {}),
    "run": ("CONFIGURED", {}),
    "stop": ("RUNNING", {}),
    "pause": ("RUNNING", {}),
    "resume": ("PAUSED", {}),
    "scale": ("RUNNING", {"change": {"memory_max": 96 * MIB}}),
    "clean": ("CONFIGURED", {}),
    "undefine": ("DEFINED", {}),
}


CHILD = """
import json, sys
from pathlib import Path
sys.path[:] = {path!r}
from nodes import make_descriptor
from nativert.runtime.node import Node
root, verb, ref, arguments = sys.argv[1:]
with Node(Path(root)) as node:
    if verb == "define":
        node.define(make_descriptor(name=ref, shell="exec sleep 1000"))
    else:
        getattr(node, verb)(ref, **json.loads(arguments))
"""


def operate_in_a_child(
    root: Path, verb: str, ref: str, failpoint: str = "", **arguments: Any
) -> int:
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            CHILD.format(path=sys.path),
            str(root),
            verb,
            ref,
            json.dumps(arguments),
        ],
        env=os.environ | {"NATIVERT_FAILPOINTS": failpoint},
        timeout=scale.LONG_S,
    )
    return child.returncode


def prepare(node: Node, state: str) -> str:
    uuid = node.define(make_descriptor(**app())).instance
    for step in {
        "DEFINED": (),
        "CONFIGURED": ("configure",),
        "RUNNING": ("configure", "run"),
        "PAUSED": ("configure", "run", "pause"),
    }.get(state, ()):
        getattr(node, step)(uuid)
    return uuid
