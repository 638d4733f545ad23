"""Answers that last: logs, figures, events. A client that does not read one is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from aiohttp import web

from nativert.agent.api.answers import CORE, NDJSON, Stream, gone, ok, query
from nativert.agent.api.core import Core
from nativert.agent.api.messages import EventsQuery, Follow, StatsQuery
from nativert.runtime import logs as logging
from nativert.runtime.supervision import acts
from nativert.runtime.views import LogLine

# How many lines are sent at once.
_BATCH = 256
# How long the agent's end may wait for a follower of nothing.
_EVENTS_WAIT_S = 1.0


async def logs(request: web.Request) -> web.StreamResponse:
    """Stream a log, from a thread that reads the files."""
    asked = query(request, Follow)
    core = request.app[CORE]
    loop = asyncio.get_running_loop()
    uuid = await core.ask(lambda: core.uuid(request.match_info["ref"]))
    text = asked.format == "text"
    stream = Stream(request, content_type="text/plain; charset=utf-8" if text else NDJSON)
    over = False

    def wanted() -> bool:
        return not (over or gone(request) or core.ending.is_set())

    pending: list[LogLine] = []

    def send() -> None:
        if text:
            data = b"".join(line.text + (b"" if line.partial else b"\n") for line in pending)
        else:
            data = b"".join(msgspec.json.encode(line) + b"\n" for line in pending)
        pending.clear()
        # The thread waits for the client: what it has not read is not held in memory.
        asyncio.run_coroutine_threadsafe(stream.write(data), loop).result()

    def flush() -> None:
        if pending:
            send()

    def relay() -> None:
        for line in _lines(core, uuid, asked, wanted, flush):
            pending.append(line)
            if len(pending) >= _BATCH:
                send()
                if not wanted():
                    return
        flush()

    with core.stream():
        await stream.begin()
        try:
            await core.streaming.call(relay)
        finally:
            over = True
        return await stream.end()


def _lines(
    core: Core,
    uuid: str,
    asked: Follow,
    wanted: Callable[[], bool],
    waits: Callable[[], None],
) -> Iterator[LogLine]:
    directory = core.context.paths.instance_lib(uuid) / "log"
    if not asked.follow or not directory.is_dir():
        return logging.read(directory, tail=asked.tail)

    def running() -> bool:
        return wanted() and acts.log_goes_on(core.context, uuid)

    return logging.follow(directory, tail=asked.tail, running=running, waits=waits)


async def stats(request: web.Request) -> web.StreamResponse:
    """Show figures once, or again and again."""
    asked = query(request, StatsQuery)
    core = request.app[CORE]
    if asked.watch is None:
        return ok(await core.ask(core.sampler.figures))
    loop = asyncio.get_running_loop()
    stream = Stream(request)
    with core.stream():
        await stream.begin()
        due = loop.time()
        while not core.ending.is_set():
            for figure in await core.ask(core.sampler.figures):
                await stream.line(figure)
            due = max(due + asked.watch, loop.time())
            await _pause(core, due - loop.time())
        return await stream.end()


async def _pause(core: Core, seconds: float) -> None:
    try:
        await asyncio.wait_for(core.ending.wait(), seconds)
    except TimeoutError:
        pass


async def events(request: web.Request) -> web.StreamResponse:
    """Tell what has happened, and then what happens."""
    asked = query(request, EventsQuery)
    core = request.app[CORE]
    stream = Stream(request)
    after = asked.after
    loop = asyncio.get_running_loop()
    deadline = loop.time() + asked.wait
    with core.stream():
        await stream.begin()
        while not core.ending.is_set():
            left_s = _EVENTS_WAIT_S if asked.follow else max(0.0, deadline - loop.time())
            if left_s:
                slice_s = min(left_s, _EVENTS_WAIT_S)
                wait = partial(core.node.wait_events, after, slice_s, limit=asked.limit)
                page = await core.streaming.call(wait)
            else:
                page = await core.ask(partial(core.node.events, after, limit=asked.limit))
            for event in page:
                await stream.line(event)
                after = event.seq
            if not asked.follow and (page or left_s <= _EVENTS_WAIT_S):
                break
        return await stream.end()
