"""Questions about the node: its host, its states, its versions, its health."""

from __future__ import annotations

import os
import platform

from aiohttp import web

from nativert import __version__
from nativert.agent.api.answers import CORE, body, ok
from nativert.agent.api.messages import Cursor, Gc, Health, State, Version


async def doctor(request: web.Request) -> web.Response:
    """Tell what this host cannot enforce."""
    core = request.app[CORE]
    return ok(await core.slow.call(core.node.doctor))


async def gc(request: web.Request) -> web.Response:
    """Remove what belongs to no instance."""
    asked = await body(request, Gc)
    core = request.app[CORE]
    return ok(await core.slow.call(lambda: core.node.gc(dry_run=asked.dry_run)))


async def latest_event(request: web.Request) -> web.Response:
    """Tell the number of the newest event."""
    core = request.app[CORE]
    return ok(Cursor(seq=await core.ask(core.node.latest_event)))


async def states(_request: web.Request) -> web.Response:
    """Show the state machine."""
    from nativert.fdu.states import TABLE

    return ok(
        [
            State(
                action=row.action.value,
                sources=tuple(state.value for state in row.sources),
                through=tuple(state.value for state in row.through),
                to=row.to.value,
            )
            for row in TABLE
        ]
    )


async def schema(_request: web.Request) -> web.Response:
    """Show the JSON Schema of descriptors."""
    from nativert.fdu import descriptor

    return ok(descriptor.schema())


async def version(request: web.Request) -> web.Response:
    """Show who serves."""
    core = request.app[CORE]
    return ok(
        Version(
            nativert=__version__,
            python=platform.python_version(),
            kernel=platform.release(),
            node=core.context.name,
            pid=os.getpid(),
        )
    )


async def openapi(_request: web.Request) -> web.Response:
    """Show the description of the API."""
    from nativert.agent.api.openapi import document

    return ok(document())


async def metrics(request: web.Request) -> web.Response:
    """Show figures for Prometheus."""
    from nativert.agent.metrics import render

    core = request.app[CORE]
    text, form = await core.ask(lambda: render(core))
    return web.Response(body=text, headers={"Content-Type": form})


async def healthz(request: web.Request) -> web.Response:
    """Tell that loop, threads and store answer."""
    core = request.app[CORE]
    await core.ask(lambda: core.context.store.events(0, limit=1))
    return ok(Health())
