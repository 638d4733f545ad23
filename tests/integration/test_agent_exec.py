"""exec over the API's WebSocket: streams, a terminal, exit codes, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import scale
from agents import Agent, serving
from nodes import start, until

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root]

Socket = aiohttp.ClientWebSocketResponse


@pytest.fixture
def agent(root: Path, node: Node) -> Iterator[Agent]:
    start(node, name="app", shell="sleep 100000")
    with serving(root) as one:
        yield one
        assert "fault" not in one.log.read_text()


def session(agent: Agent, body: Callable[[Socket], Awaitable[Any]], **program: object) -> Any:
    """Do *body* with an exec session that has begun."""

    async def run() -> Any:
        connector = aiohttp.UnixConnector(str(agent.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.ws_connect("http://node/v1/instances/app/exec") as socket,
        ):
            await socket.send_str(json.dumps(program))
            return await asyncio.wait_for(body(socket), scale.LONG_S)

    return asyncio.run(run())


async def outcome(socket: Socket) -> tuple[dict[int, bytes], dict[str, Any]]:
    """Return what came on each stream, and the last message."""
    streams: dict[int, bytes] = {}
    last: dict[str, Any] = {}
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            streams[message.data[0]] = streams.get(message.data[0], b"") + message.data[1:]
        else:
            last = json.loads(message.data)
    return streams, last


def sleepers(node: Node) -> list[str]:
    pids = node._context.driver.open(f"i-{node.get('app').instance}").pids()
    found = []
    for pid in pids:
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended since it was listed.
    return found


def test_streams_and_exit_code(agent: Agent) -> None:
    async def talk(socket: Socket) -> Any:
        await socket.send_bytes(b"hello\n" * 50_000)
        await socket.send_str('{"eof": true}')
        return await outcome(socket)

    script = "echo $WHO >&2; cat; exit 7"
    streams, last = session(agent, talk, argv=["/bin/sh", "-c", script], env={"WHO": "me"})
    assert streams == {1: b"hello\n" * 50_000, 2: b"me\n"}
    assert last == {"exit_code": 7}


def test_a_terminal_with_a_size(agent: Agent) -> None:
    async def talk(socket: Socket) -> Any:
        await socket.send_str('{"resize": [33, 44]}')
        await socket.send_bytes(b"stty size; exit 3\n")
        return await outcome(socket)

    streams, last = session(agent, talk, argv=["/bin/sh"], tty=True, rows=10, columns=20)
    assert b"33 44" in streams[1]
    assert last == {"exit_code": 3}


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ({"argv": ["/no/such"]}, "command-not-found"),
        ({"argv": []}, "usage"),
        ({"argv": ["/bin/true"], "x": 1}, "usage"),
    ],
)
def test_what_cannot_be_is_said(agent: Agent, program: dict[str, Any], code: str) -> None:
    _, last = session(agent, outcome, **program)
    assert last["error"]["code"] == code


@pytest.mark.parametrize("tty", [False, True])
def test_a_client_that_leaves_ends_the_program(agent: Agent, node: Node, tty: bool) -> None:
    async def leave(socket: Socket) -> None:
        assert await socket.receive_json() == {"started": True}
        message = await socket.receive()
        assert b"up" in message.data

    script = "echo up; exec sleep 54321"
    session(agent, leave, argv=["/bin/sh", "-c", script], tty=tty)
    until(lambda: not any("54321" in line for line in sleepers(node)))
    assert node.get("app").state == "RUNNING"
