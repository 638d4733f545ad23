"""Agents as processes of their own, and plain requests to them."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import scale
from nodes import CLI, until

from nativert.agent.client import Client
from nativert.runtime.facade import Facade
from nativert.runtime.node import Node
from nativert.store.paths import Paths


class Agent:
    """One `nativert agent`; `log` is its stderr."""

    def __init__(self, root: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self.root = root
        self.process = process
        self.log = log
        self.socket = Paths(root).api_socket

    def client(self) -> Client:
        return Client(self.socket, direct=self._direct)

    def _direct(self) -> Facade:
        return Node(self.root)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        fd = os.open(self.socket.parent, os.O_PATH)
        try:
            sock.connect(f"/proc/self/fd/{fd}/{self.socket.name}")
        except OSError:
            sock.close()
            raise
        finally:
            os.close(fd)
        sock.settimeout(scale.LONG_S)
        return sock

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Return status, headers and body of one answer."""
        connection = http.client.HTTPConnection("node")
        connection.sock = self.connect()
        data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        connection.request(method, path, body=data, headers=headers or {})
        answer = connection.getresponse()
        told = answer.read()
        connection.close()
        return answer.status, answer.headers, told

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Return status and document of one answer."""
        status, _, data = self.request(method, path, body)
        return status, msgspec.json.decode(data) if data else None

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(scale.LONG_S)

    def pss_kib(self) -> int:
        """Return the proportional set size; see proc(5) on smaps_rollup."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return next(int(x.split()[1]) for x in text.splitlines() if x.startswith("Pss:"))


@contextmanager
def serving(
    root: Path,
    *options: str,
    env: dict[str, str] | None = None,
    config: str = "",
    first: str = "",
) -> Iterator[Agent]:
    """Serve the node under *root* for the length of the block.

    *first* is Python that the agent's process does before all else.
    """
    paths = Paths(root)
    if config:
        paths.etc.mkdir(parents=True, exist_ok=True)
        paths.config.write_text(config)
    log = root.parent / "agent.log"
    with log.open("ab") as stderr:
        process = start(root, *options, env=env, stderr=stderr.fileno(), first=first)
    agent = Agent(root, process, log)
    try:
        until(
            lambda: process.poll() is not None or _answers(agent),
            what=f"the agent answers: {log.read_text()}",
            deadline_s=scale.LONG_S,
        )
        assert process.poll() is None, log.read_text()
        yield agent
    finally:
        if process.poll() is None:
            agent.end()


def start(
    root: Path,
    *options: str,
    env: dict[str, str] | None = None,
    stderr: int | None = None,
    first: str = "",
) -> subprocess.Popen[bytes]:
    """Start an agent and return at once."""
    program = CLI
    if first:
        program = (CLI[0], "-c", f"{first}\nfrom nativert.cli.main import main\nmain()")
    command: Sequence[str] = [*program, "agent", *options]
    environment = os.environ | {"NATIVERT_ROOT": str(root)} | (env or {})
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=stderr
    )


def _answers(agent: Agent) -> bool:
    try:
        return agent.ask("GET", "/healthz")[0] == 200
    except OSError:
        return False
