"""The operations on instances, and questions about one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from functools import partial

import msgspec
from aiohttp import web

from nativert.agent import faults
from nativert.agent.api.answers import CORE, NDJSON, Stream, body, gone, ok, query
from nativert.agent.api.core import Core
from nativert.agent.api.messages import (
    Defined,
    Destination,
    Environment,
    Kill,
    Redefined,
    Removal,
    Scale,
    Wait,
)
from nativert.errors import Code, NativertError
from nativert.fdu import descriptor as descriptors
from nativert.runtime.pool import Pool
from nativert.runtime.views import Instance

# A wait is asked again after this time, so that its thread can end when nobody waits any more.
_WAIT_SLICE_S = 30.0


async def define(request: web.Request) -> web.Response:
    """Make an instance."""
    asked = await body(request, Defined)
    core = request.app[CORE]

    def make() -> Instance:
        text = msgspec.json.encode(asked.descriptor)
        return core.node.define(descriptors.decode(text, source="descriptor"), name=asked.name)

    return ok(await core.ask(make), status=201)


async def redefine(request: web.Request) -> web.Response:
    """Give an instance another descriptor."""
    asked = await body(request, Redefined)
    node = request.app[CORE].node

    def change(ref: str) -> Instance:
        text = msgspec.json.encode(asked.descriptor)
        return node.redefine(ref, descriptors.decode(text, source="descriptor"))

    return await _operated(request, change)


async def _operated(
    request: web.Request, job: Callable[[str], Instance], pool: Pool | None = None
) -> web.Response:
    core = request.app[CORE]
    operation = core.operate(
        request.match_info["ref"], job, pool=pool or core.quick, wanted=lambda: not gone(request)
    )
    return ok(await operation)


async def configure(request: web.Request) -> web.StreamResponse:
    """Configure; the progress of a download is told to who accepts lines."""
    core = request.app[CORE]
    node = core.node
    if request.headers.get("Accept") != NDJSON:
        return await _operated(request, node.configure, core.slow)
    loop = asyncio.get_running_loop()
    # Before the answer begins: where there is none here, another node may have it.
    uuid = await core.ask(lambda: core.uuid(request.match_info["ref"]))
    stream = Stream(request)
    await stream.begin()
    latest: tuple[int, int | None] | None = None
    came = asyncio.Event()
    began: list[str] = []

    def note(received: int, total: int | None) -> None:
        nonlocal latest
        latest = (received, total)
        came.set()

    def progress(received: int, total: int | None) -> None:
        if gone(request):
            # As Ctrl-C in a command without an agent: what was acquired is released.
            raise NativertError("given up: the client went away", code=Code.FAILED)
        loop.call_soon_threadsafe(note, received, total)

    def make(uuid: str) -> Instance:
        began.append(uuid)
        return node.configure(uuid, progress=progress)

    async def tell() -> None:
        while True:
            await came.wait()
            came.clear()
            if latest is not None:
                await stream.line({"progress": {"received": latest[0], "total": latest[1]}})
            await asyncio.sleep(0.1)

    telling = asyncio.ensure_future(tell())
    try:
        row = await core.operate(
            uuid,
            make,
            pool=core.slow,
            wanted=lambda: not gone(request),
        )
        told: object = {"result": row}
    except (NativertError, OSError) as e:
        error = faults.known(e)
        assert error is not None
        told = {"error": faults.encode(error)}
    except asyncio.CancelledError:
        for uuid in began:
            core.quick.submit(partial(_end_script, core, uuid))
        raise
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
    await stream.line(told)
    return await stream.end()


def _end_script(core: Core, uuid: str) -> None:
    """Kill what configure has started inside: nobody waits for it any more."""
    try:
        with core.context.init(uuid) as channel:
            channel.call({"verb": "signal", "signal": int(signal.SIGKILL), "all": True})
    except (OSError, EOFError):
        pass  # It is not there, or has ended already.


async def start(request: web.Request) -> web.Response:
    """Start the application."""
    asked = await body(request, Environment)
    core = request.app[CORE]
    # What it depends on is fetched, started and waited for.
    return await _operated(request, partial(core.node.run, env=asked.env), core.starting)


async def restart(request: web.Request) -> web.Response:
    """Stop and start."""
    core = request.app[CORE]
    return await _operated(request, core.node.restart, core.starting)


async def stop(request: web.Request) -> web.Response:
    """Stop the application."""
    core = request.app[CORE]
    return await _operated(request, core.node.stop, core.slow)


async def pause(request: web.Request) -> web.Response:
    """Freeze the application."""
    return await _operated(request, request.app[CORE].node.pause)


async def resume(request: web.Request) -> web.Response:
    """Thaw the application."""
    return await _operated(request, request.app[CORE].node.resume)


async def scale(request: web.Request) -> web.Response:
    """Change limits."""
    asked = await body(request, Scale)
    node = request.app[CORE].node
    return await _operated(request, lambda ref: node.scale(ref, asked.limits, force=asked.force))


async def migrate(request: web.Request) -> web.Response:
    """Move it to another node."""
    asked = await body(request, Destination)
    core = request.app[CORE]
    told = await core.operate(
        request.match_info["ref"],
        lambda ref: core.node.migrate(ref, asked.node),
        pool=core.slow,
        wanted=lambda: not gone(request),
    )
    return ok(told)


async def clean(request: web.Request) -> web.Response:
    """Remove what configure has made."""
    core = request.app[CORE]
    return await _operated(request, core.node.clean, core.slow)


async def undefine(request: web.Request) -> web.Response:
    """Forget a defined instance."""
    core = request.app[CORE]
    await core.operate(
        request.match_info["ref"],
        core.node.undefine,
        pool=core.slow,
        wanted=lambda: not gone(request),
    )
    return web.Response(status=204)


async def remove(request: web.Request) -> web.Response:
    """Take the edges down to UNDEFINED."""
    asked = query(request, Removal)
    core = request.app[CORE]
    await core.operate(
        request.match_info["ref"],
        partial(core.node.remove, force=asked.force),
        pool=core.slow,
        wanted=lambda: not gone(request),
    )
    return web.Response(status=204)


async def kill(request: web.Request) -> web.Response:
    """Send a signal: at once, also while a stop waits for the end."""
    asked = await body(request, Kill)
    core = request.app[CORE]
    await core.ask(lambda: core.node.kill(request.match_info["ref"], asked.signal))
    return web.Response(status=204)


async def wait(request: web.Request) -> web.Response:
    """Wait for the end of the application."""
    asked = await body(request, Wait)
    core = request.app[CORE]
    loop = asyncio.get_running_loop()
    deadline = None if asked.timeout_s is None else loop.time() + asked.timeout_s
    uuid = await core.ask(lambda: core.uuid(request.match_info["ref"]))

    def ended(slice_s: float) -> Instance | None:
        try:
            return core.node.wait(uuid, timeout_s=slice_s)
        except NativertError as e:
            if e.code is not Code.TIMEOUT:
                raise
        return None

    with core.stream():
        while True:
            left_s = _WAIT_SLICE_S if deadline is None else max(0.0, deadline - loop.time())
            row = await core.streaming.call(partial(ended, min(left_s, _WAIT_SLICE_S)))
            if row is not None:
                return ok(row)
            if deadline is not None and loop.time() >= deadline:
                name = (await core.ask(lambda: core.node.get(uuid))).name
                raise NativertError(
                    f"{name}: still runs after {asked.timeout_s:g} s",
                    code=Code.TIMEOUT,
                )


async def get(request: web.Request) -> web.Response:
    """Show one instance."""
    core = request.app[CORE]
    return ok(await core.ask(lambda: core.node.get(request.match_info["ref"])))


async def list_all(request: web.Request) -> web.Response:
    """List every instance."""
    core = request.app[CORE]
    return ok(await core.ask(core.sampler.rows))


async def inspect(request: web.Request) -> web.Response:
    """Show the full record."""
    core = request.app[CORE]
    return ok(await core.ask(lambda: core.node.inspect(request.match_info["ref"])))


async def stats(request: web.Request) -> web.Response:
    """Show what one instance uses."""
    core = request.app[CORE]
    (figures,) = await core.ask(lambda: core.sampler.figures([request.match_info["ref"]]))
    return ok(figures)
