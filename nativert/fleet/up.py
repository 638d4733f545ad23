"""Making a fleet: namespaces and wires, a root and a configuration for each node, and its agent."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nativert.agent.client import Client
from nativert.errors import Code, NativertError
from nativert.fleet import down, network, plan
from nativert.fleet.plan import Member, Plan
from nativert.isolation import syscalls
from nativert.isolation.network import named
from nativert.plugin import zenoh_package
from nativert.runtime.facade import Facade
from nativert.runtime.overlay import plan as overlay
from nativert.store.claims import Claims
from nativert.store.identity import open_identity

_READY_S: Final = 60.0
_LOOK_S: Final = 0.05
_USER: Final = "fleet"
_CONFIG: Final = """\
# Written by `nativert up`.
[zenoh]
listen = [{own}]
connect = {others}
# On the fleet's own bridge, and to who has the password.
insecure = true

[zenoh.options]
"transport/auth/usrpwd/user" = "{user}"
"transport/auth/usrpwd/password" = "{secret}"
"transport/auth/usrpwd/dictionary_file" = {users}
"""


class Fleet:
    """A fleet that is up, and the agents that this process has started."""

    def __init__(self, root: Path, fleet: Plan) -> None:
        self.root = root
        self.plan = fleet
        self._agents: dict[str, subprocess.Popen[bytes]] = {}

    def ended(self) -> list[str]:
        """Return the names of the nodes whose agent has ended since the last time."""
        gone = [name for name, agent in self._agents.items() if agent.poll() is not None]
        for name in gone:
            del self._agents[name]
        return gone

    def start(self) -> None:
        """Start every agent, and wait until each knows all others; NativertError."""
        for node in self.plan.nodes:
            with _in(node.netns):
                self._agents[node.name] = _agent(node)
        deadline = time.monotonic() + _READY_S
        for node in self.plan.nodes:
            while not _ready(node, self.plan.nodes):
                for name in self.ended():
                    raise NativertError(f"{name}: its agent has ended: {self._said(name)}")
                if time.monotonic() > deadline:
                    raise NativertError(
                        f"{node.name} does not know the others after {_READY_S:g} s:"
                        f" {self._said(node.name)}",
                        code=Code.TIMEOUT,
                    )
                time.sleep(_LOOK_S)

    def _said(self, name: str) -> str:
        try:
            text = (self.root / name / "agent.log").read_text(errors="replace")
        except OSError as e:
            return str(e)
        return text.strip().rpartition("\n")[2] or "it has said nothing"

    def kill(self) -> None:
        """Kill the agents that this process has started; their instances go on."""
        for agent in self._agents.values():
            agent.kill()
        for agent in self._agents.values():
            agent.wait()


def up(root: Path, count: int) -> Fleet:
    """Make a fleet of *count* nodes below *root*, all of it or nothing.

    NativertError NAME_TAKEN where there is one, or something else; REQUIREMENTS without Zenoh.
    """
    zenoh_package.require()
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    with plan.lock(root):
        fleet = plan.make(root, count)
        _refuse_taken(root, fleet)
        made = Fleet(root, fleet)
        try:
            plan.save(root, fleet)
            network.make(fleet)
            secret = secrets.token_hex(16)
            for node in fleet.nodes:
                _prepare(node, fleet.nodes, secret)
            made.start()
        except BaseException:
            made.kill()
            down.remove(root, fleet)
            raise
    return made


def _refuse_taken(root: Path, fleet: Plan) -> None:
    if plan.there(root):
        raise NativertError(
            f"{root}: a fleet is here already",
            code=Code.NAME_TAKEN,
            hint="nativert down removes it; --root names another directory",
        )
    for node in fleet.nodes:
        if node.root.exists():
            raise NativertError(
                f"{node.root} is there already, and no fleet's",
                code=Code.NAME_TAKEN,
                hint="--root names another directory",
            )


def _prepare(node: Member, all_of_them: Sequence[Member], secret: str) -> None:
    paths = node.paths
    paths.create()
    # First: from here on whoever opens the node does so in its namespace.
    paths.netns.write_text(node.netns + "\n")
    paths.etc.mkdir(parents=True, exist_ok=True)
    users = paths.etc / "fleet.users"
    _write_private(users, f"{_USER}:{secret}\n")
    others = [each.endpoint for each in all_of_them if each is not node]
    text = _CONFIG.format(
        own=json.dumps(node.endpoint), others=json.dumps(others), user=_USER, secret=secret,
        users=json.dumps(str(users)),
    )  # fmt: skip
    _write_private(paths.config, text)
    open_identity(paths, Claims(), name=node.name)


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as f:
        f.write(text)


@contextmanager
def _in(netns: str) -> Iterator[None]:
    """Be in a named network namespace for the length of the block: a child is born there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = named.open_named(netns)
    try:
        syscalls.setns(there, syscalls.CLONE_NEWNET)
        yield
    finally:
        syscalls.setns(home, syscalls.CLONE_NEWNET)
        os.close(home)
        os.close(there)


def _agent(node: Member) -> subprocess.Popen[bytes]:
    # What names another node or way in the caller's environment is not meant for this one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NATIVERT_")}
    with open(node.root / "agent.log", "ab") as log:
        return subprocess.Popen(
            # -P: the directory where this is called has no modules of ours.
            [sys.executable, "-P", "-m", "nativert", "--root", str(node.root), "agent"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C on the terminal is for who has made the fleet.
            start_new_session=True,
        )


def _ready(node: Member, all_of_them: Sequence[Member]) -> bool:
    try:
        with Client(node.paths.api_socket, direct=_nobody) as client:
            alive = {row.name for row in client.nodes() if row.alive}
    except (OSError, NativertError):
        return False  # Not yet.
    return alive >= {each.name for each in all_of_them} and _joined(node, all_of_them)


def _joined(node: Member, all_of_them: Sequence[Member]) -> bool:
    """Tell whether a node's network is joined with all others; not asked where one has no part."""
    files = [overlay.path_below(each.paths.run / "net") for each in (node, *all_of_them)]
    own, *every = [overlay.read(path) for path in files]
    if own is None or None in every:
        return True
    return len(own.peers) + len(own.refused) >= len(all_of_them) - 1


def _nobody() -> Facade:
    raise NativertError("its agent does not serve", code=Code.NO_AGENT)
