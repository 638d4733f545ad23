"""Agents that ask for credentials, clients that show them, and sessions that try what is denied."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zenoh
from fog05_clients import FIMAPI
from nodes import CLI

from nativert.fog05 import yaks
from nativert.plugin import zenoh_credentials
from nativert.plugin.zenoh_session import Settings, open_session


def init(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """Run `nativert zenoh init`, and return what it prints."""
    done = subprocess.run(
        [*CLI, "zenoh", "init", *map(str, arguments)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Ports that were free, all of them at once."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def hand_out(authority: Path, name: str, root: Path, port: int, *others: int) -> None:
    """Put a node's files below *root*, on ports of their own: all nodes are on this host."""
    etc = root / "etc/nativert"
    etc.mkdir(parents=True)
    subprocess.run(["cp", "-r", f"{authority}/nodes/{name}/.", str(etc)], check=True)
    path = etc / "conf.d/zenoh.toml"
    lines = path.read_text().splitlines()
    connect = json.dumps([f"tls/127.0.0.1:{other}" for other in others])
    text = {"listen": f'["tls/127.0.0.1:{port}"]', "connect": connect}
    changed = [f"{w} = {text[w]}" if (w := x.partition(" ")[0]) in text else x for x in lines]
    path.write_text("\n".join(changed) + "\n")


@contextmanager
def client(port: int, credentials: Path) -> Iterator[FIMAPI]:
    """The unmodified client, showing *credentials*."""
    yaks.show(credentials)
    try:
        api = FIMAPI(f"127.0.0.1:{port}")
    finally:
        yaks.show(None)
    try:
        yield api
    finally:
        api.close()
        api.executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def session(port: int, credentials: Path, mode: str = "client") -> Iterator[zenoh.Session]:
    """A plain session of whoever has *credentials*."""
    one = open_session(
        Settings(
            mode=mode,
            connect=(f"tls/127.0.0.1:{port}",),
            credentials=zenoh_credentials.read(credentials),
        )
    )
    try:
        yield one
    finally:
        one.close()


def found(one: zenoh.Session, selector: str) -> list[str]:
    """The keys that are answered."""
    replies = one.get(
        selector,
        target=zenoh.QueryTarget.ALL,
        consolidation=zenoh.ConsolidationMode.NONE,
        timeout=10.0,
    )
    return sorted(str(reply.ok.key_expr) for reply in replies if reply.ok is not None)


def whole_life(
    api: FIMAPI,
    in_time: Callable[[Callable[[], Any]], Any],
    descriptor: Any,
    nodes: Sequence[str],
) -> None:
    """Everything from onboard to offload, on each of *nodes*."""
    fdu = in_time(lambda: api.fdu.onboard(descriptor))
    for node in nodes:
        record = in_time(lambda: api.fdu.define(fdu.get_uuid(), node))  # noqa: B023
        instance = record.get_uuid()
        in_time(lambda: api.fdu.configure(instance))  # noqa: B023
        in_time(lambda: api.fdu.start(instance, "A=1"))  # noqa: B023
        for step in (api.fdu.pause, api.fdu.resume, api.fdu.stop, api.fdu.clean, api.fdu.undefine):
            in_time(lambda: step(instance))  # noqa: B023
    in_time(lambda: api.fdu.offload(fdu.get_uuid()))
