"""Three agents on one machine that know each other."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import scale
from agents import Agent, serving
from fog05_clients import config, free_port
from nodes import CLI, MakeNode

from nativert.runtime.node import Node
from nativert.store.claims import Claims
from nativert.store.identity import open_identity
from nativert.store.paths import Paths

LONG: Final = scale.seconds(40)
APP: Final = "echo up; exec sleep 1000"
NAMES: Final = ("a", "b", "c")


class Three:
    """The nodes a, b and c; commands are asked of one of them."""

    def __init__(self, tmp_path: Path, make_node: MakeNode) -> None:
        self.ports = [free_port() for _ in NAMES]
        self.roots = [tmp_path / name / "node" for name in NAMES]
        for name, root in zip(NAMES, self.roots, strict=True):
            root.parent.mkdir()
            open_identity(Paths(root), Claims(), name=name)
        self.nodes: list[Node] = [make_node(root) for root in self.roots]
        self.ids = [node.identity.id for node in self.nodes]
        self.stack = ExitStack()
        self.agents = [self.serve(number) for number in range(len(NAMES))]

    def serve(self, number: int) -> Agent:
        others = [port for port in self.ports if port != self.ports[number]]
        text = config(self.ports[number], *others)
        return self.stack.enter_context(serving(self.roots[number], config=text))

    def command(self, number: int, *words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"NATIVERT_ROOT": str(self.roots[number])}
        return subprocess.run(
            [*CLI, *words], env=environment, capture_output=True, text=True, timeout=LONG
        )

    def ok(self, number: int, *words: str) -> Any:
        done = self.command(number, *words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def alive(self, number: int) -> dict[str, bool]:
        status, rows = self.agents[number].ask("GET", "/v1/nodes")
        assert status == 200, rows
        return {row["name"]: row["alive"] for row in rows if row["name"]}

    def met(self) -> bool:
        """Tell whether all see all; not while one starts anew, as after a cut that left half."""
        with suppress(OSError):
            return all(self.alive(n) == dict.fromkeys(NAMES, True) for n in range(len(NAMES)))
        return False


def streams(agent: Agent) -> float:
    """Return how many streams an agent serves."""
    text = agent.request("GET", "/metrics")[2].decode()
    line = next(x for x in text.splitlines() if x.startswith("nativert_agent_streams "))
    return float(line.split()[1])
