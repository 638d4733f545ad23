"""exec over a WebSocket: a program inside an instance, its streams or its terminal.

The client begins with `messages.Program` as a text message. Once the program runs it is told
``{"started": true}``. Then binary messages: to the program its stdin, from it one byte 1 or 2
(stdout, stderr) and the bytes; text messages ``{"resize": [rows, columns]}`` and ``{"eof": true}``
to it. The last message is ``{"exit_code": n}`` or ``{"error": ...}``. A client that leaves ends
the program.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import msgspec
from aiohttp import WSMsgType, web

from nativert.agent import faults
from nativert.agent.api import elsewhere
from nativert.agent.api.answers import CORE, departure
from nativert.agent.api.core import Core
from nativert.agent.api.messages import Program
from nativert.agent.api.passing import relay
from nativert.agent.nodes.messages import CHUNK
from nativert.errors import Code, NativertError
from nativert.fdu.known import known
from nativert.runtime.execute import ExecSession

_LONGEST_S = 30 * 86400.0
_END_OF_FILE = b"\x04"  # VEOF of a fresh terminal; see termios(3)


class _Control(msgspec.Struct, forbid_unknown_fields=True):
    resize: tuple[int, int] | None = None
    eof: bool = False


async def exec_(request: web.Request) -> web.StreamResponse:
    """Serve one session, or have the node serve it that has the instance."""
    core = request.app[CORE]
    limits = core.config.api
    with core.stream():
        # One on this machine may stand still, as in front of a pager: it is waited for, and
        # whether it lives is seen by its socket.
        local = request.transport is None or not request.transport.get_extra_info("peername")
        socket = web.WebSocketResponse(
            max_msg_size=max(limits.max_body_bytes, 2 * CHUNK),
            heartbeat=None if local else limits.client_timeout_s,
            timeout=_LONGEST_S if local else limits.client_timeout_s,
        )
        await socket.prepare(request)
        try:
            told = await _carry_out(request, socket)
        except (NativertError, OSError) as e:
            error = faults.known(e)
            assert error is not None
            told = {"error": faults.encode(error)}
        if not socket.closed:
            if told is not None:
                await socket.send_str(msgspec.json.encode(told).decode())
            await socket.close()
        return socket


async def _carry_out(request: web.Request, socket: web.WebSocketResponse) -> Any:
    """Return what to tell at the end; None where another node has told it."""
    core = request.app[CORE]
    node, ref = await elsewhere.found(request)
    assert ref is not None  # by the route
    if node != core.context.identity.id:
        target = elsewhere.EXEC.replace("{ref}", quote(ref, safe=""))
        await relay(request, socket, str(node), target)
        return None
    return {"exit_code": await _serve(request, socket, ref)}


async def _serve(request: web.Request, socket: web.WebSocketResponse, ref: str) -> int:
    core = request.app[CORE]
    try:
        first = await socket.receive(core.config.api.client_timeout_s)
    except TimeoutError:
        raise NativertError("no program was given in time", code=Code.TIMEOUT) from None
    if first.type is not WSMsgType.TEXT:
        raise NativertError("the first message must be a text: the program", code=Code.USAGE)
    try:
        program = msgspec.json.decode(first.data, type=known(Program))
    except msgspec.DecodeError as e:
        raise NativertError(f"program: {e}", code=Code.USAGE) from None
    with ExitStack() as held:
        run = _on_a_terminal if program.tty else _on_pipes
        return await run(request, socket, ref, program, held)


async def _on_a_terminal(
    request: web.Request,
    socket: web.WebSocketResponse,
    ref: str,
    program: Program,
    held: ExitStack,
) -> int:
    core = request.app[CORE]
    session = await _begun(
        core,
        lambda: core.node.exec(ref, program.argv, stdio=(0, 1, 2), tty=True, env=program.env),
    )
    held.callback(session.close)
    session.resize(program.rows, program.columns)
    assert session.master is not None  # a session on a terminal has one
    os.set_blocking(session.master, False)
    return await _attend(request, socket, session, session.master, [(1, session.master)])


async def _on_pipes(
    request: web.Request,
    socket: web.WebSocketResponse,
    ref: str,
    program: Program,
    held: ExitStack,
) -> int:
    core = request.app[CORE]
    pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    inner = [pairs[0][0], pairs[1][1], pairs[2][1]]
    stdin, stdout, stderr = pairs[0][1], pairs[1][0], pairs[2][0]
    for fd in (stdout, stderr):
        held.callback(os.close, fd)
    try:
        session = await _begun(
            core,
            lambda: core.node.exec(
                ref, program.argv, stdio=(inner[0], inner[1], inner[2]), env=program.env
            ),
            inner,
        )
    except BaseException:
        os.close(stdin)
        raise
    held.callback(session.close)
    for fd in (stdin, stdout, stderr):
        os.set_blocking(fd, False)
    return await _attend(request, socket, session, stdin, [(1, stdout), (2, stderr)])


async def _begun(
    core: Core, job: Callable[[], ExecSession], given: Sequence[int] = ()
) -> ExecSession:
    """Have a thread begin a session and close the descriptors *given* to it.

    That thread goes on when the caller is cancelled, with numbers that nobody else may have got
    meanwhile; a session that nobody waits for any more is ended.
    """

    def carry_out() -> ExecSession:
        try:
            return job()
        finally:
            _close(given)

    try:
        future = core.quick.submit(carry_out)
    except NativertError:
        _close(given)
        raise
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        future.add_done_callback(_give_up)
        raise


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _give_up(future: Future[ExecSession]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()


async def _attend(
    request: web.Request,
    socket: web.WebSocketResponse,
    session: ExecSession,
    stdin: int,
    outputs: list[tuple[int, int]],
) -> int:
    await socket.send_str('{"started":true}')
    end = asyncio.ensure_future(request.app[CORE].streaming.call(session.wait))
    shows = [asyncio.ensure_future(_show(socket, number, fd, end)) for number, fd in outputs]
    typed = asyncio.ensure_future(_type(socket, session, stdin))
    left = asyncio.ensure_future(departure(request))
    try:
        done, _ = await asyncio.wait((end, typed, left), return_when=asyncio.FIRST_COMPLETED)
        if end not in done:
            if typed in done:
                typed.result()
            raise ConnectionResetError("the client went away")
        await asyncio.gather(*shows)
        return end.result()
    finally:
        # Closing the session makes init kill what runs of it; then the thread's wait ends.
        session.close()
        for task in (typed, left, *shows):
            task.cancel()
        await asyncio.gather(typed, left, *shows, return_exceptions=True)


async def _show(
    socket: web.WebSocketResponse, number: int, fd: int, end: asyncio.Future[int]
) -> None:
    """Send what the program writes; after its end only what is there already."""
    while True:
        over = end.done()
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            if over:
                return
            await _ready(fd, end, asyncio.get_running_loop().add_reader)
            continue
        except OSError:
            return  # EIO: the terminal has no other side any more; see pty(7).
        if not data:
            return
        await socket.send_bytes(bytes([number]) + data)


async def _type(socket: web.WebSocketResponse, session: ExecSession, stdin: int) -> None:
    """Give the program what the client sends, until the client leaves."""
    fd: int | None = stdin
    terminal = session.master is not None
    try:
        async for message in socket:
            data = b""
            if message.type is WSMsgType.BINARY:
                data = message.data
            elif message.type is WSMsgType.TEXT:
                try:
                    control = msgspec.json.decode(message.data, type=known(_Control))
                except msgspec.DecodeError as e:
                    raise NativertError(f"message: {e}", code=Code.USAGE) from None
                if control.resize is not None:
                    session.resize(*(min(max(n, 1), 9999) for n in control.resize))
                if control.eof and terminal:
                    data = _END_OF_FILE
                elif control.eof and fd is not None:
                    os.close(fd)
                    fd = None
            while data and fd is not None:
                try:
                    data = data[os.write(fd, data) :]
                except BlockingIOError:
                    await _ready(fd, None, asyncio.get_running_loop().add_writer)
                except OSError:
                    break  # It does not read any more.
    finally:
        if fd is not None and not terminal:
            os.close(fd)


async def _ready(
    fd: int,
    or_end: asyncio.Future[int] | None,
    watch: Callable[..., object],
) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    remove = loop.remove_writer if watch == loop.add_writer else loop.remove_reader

    def wake(*_: object) -> None:
        if not ready.done():
            ready.set_result(None)

    watch(fd, wake)
    if or_end is not None:
        or_end.add_done_callback(wake)
    try:
        await ready
    finally:
        remove(fd)
        if or_end is not None:
            or_end.remove_done_callback(wake)
