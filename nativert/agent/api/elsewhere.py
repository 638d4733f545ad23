"""What concerns other nodes: which there are, and requests that one of them carries out.

A request goes to another node where it names one (the header `Nativert-Node`, or NODE/NAME for an
instance), or where no instance here has the reference and one there has. What is here is never
looked for elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

import msgspec
from aiohttp import web

from nativert.agent import faults
from nativert.agent.api.answers import CORE, ok
from nativert.agent.api.core import Core
from nativert.agent.api.messages import Everywhere, KnownNode
from nativert.agent.api.passage import Passage, others
from nativert.agent.api.passing import pass_on
from nativert.agent.nodes.messages import Summary
from nativert.agent.nodes.serving import SENDER
from nativert.agent.wire import NODE
from nativert.errors import NativertError, UnknownInstanceError
from nativert.fdu.known import known
from nativert.runtime.views import Instance

if TYPE_CHECKING:
    from nativert.agent.nodes.reaching import Owner

EXEC: Final = "/v1/instances/{ref}/exec"
_LIST: Final = "/v1/instances"
_LIST_S: Final = 5.0
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Meant(NamedTuple):
    """The id of the node that a request names, None without; and what it calls the instance."""

    node: str | None
    ref: str | None


async def meant(request: web.Request) -> Meant:
    """Return whom a request is for; NativertError where no such node is there."""
    core = request.app[CORE]
    own = core.context.identity.id
    ref = request.match_info.get("ref")
    if SENDER in request.headers:
        return Meant(own, ref)
    node = unquote(request.headers.get(NODE, ""))
    if not node and ref and "/" in ref:
        node, _, ref = ref.partition("/")
    if not node:
        return Meant(None, ref)
    if core.nodes is None and node in (core.context.name, own):
        return Meant(own, ref)
    return Meant(await core.others.call(partial(others(core).resolve, node)), ref)


async def _owner(core: Core, unknown: UnknownInstanceError) -> Owner:
    if core.nodes is None:
        raise unknown
    return await core.others.call(partial(core.nodes.owner, unknown.instance))


async def found(request: web.Request) -> Meant:
    """Return on which node the instance of a request is, before more of the request is read."""
    core = request.app[CORE]
    node, ref = await meant(request)
    if node is None and ref is not None and core.nodes is not None:
        try:
            await core.ask(partial(core.uuid, ref))
        except UnknownInstanceError as e:
            return Meant(*await _owner(core, e))
    return Meant(node or core.context.identity.id, ref)


@web.middleware
async def passed_on(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Have another node carry out what is meant for one."""
    resource = request.match_info.route.resource
    if resource is None or resource.canonical == EXEC:
        return await handler(request)  # A session looks for itself, and tells in its own way.
    core = request.app[CORE]
    # A body is given once: where it goes must not turn out later.
    node, ref = await (found(request) if request.method == "PUT" else meant(request))
    if node is not None and node != core.context.identity.id:
        return await pass_on(request, node, ref)
    if ref is not None:
        request.match_info["ref"] = ref
    try:
        return await handler(request)
    except UnknownInstanceError as e:
        if node is not None or e.instance != ref:
            raise
        return await pass_on(request, *await _owner(core, e))


async def nodes(request: web.Request) -> web.Response:
    """List this node, and the others that it has seen."""
    core = request.app[CORE]
    return ok(await core.others.call(partial(_known, core)))


def _known(core: Core) -> list[KnownNode]:
    identity, now = core.context.identity, time.time()
    own = Summary(name=core.context.name, addresses=(), instances=len(core.context.store.rows()))
    own = core.nodes.summary() if core.nodes else own
    listed = [_row(identity.id, own, now, own=True)]
    for seen, told in core.nodes.all() if core.nodes else []:
        known = told or seen.summary
        row = _row(seen.id, known, now if seen.gone is None else seen.gone)
        listed.append(
            msgspec.structs.replace(
                row, alive=seen.gone is None, instances=told.instances if told else None
            )
        )
    return sorted(listed, key=lambda row: (row.name or "", row.uuid))


def _row(node: str, known: Summary | None, seen: float, *, own: bool = False) -> KnownNode:
    return KnownNode(
        uuid=node,
        name=known.name if known else None,
        own=own,
        alive=True,
        addresses=known.addresses if known else (),
        instances=known.instances if known else None,
        last_seen=seen,
    )


async def everywhere(request: web.Request) -> web.Response:
    """List the instances of all nodes that are there, this one's first."""
    core = request.app[CORE]
    there = core.nodes.there() if core.nodes else []
    own, answers = await asyncio.gather(
        core.ask(core.sampler.rows), asyncio.gather(*(_listed(core, seen.id) for seen in there))
    )
    listed = Everywhere(instances=own, silent=[])
    for seen, rows in zip(there, answers, strict=True):
        if rows is None:
            listed.silent.append(seen.name)
        else:
            listed.instances.extend(rows)
    return ok(listed)


async def _listed(core: Core, node: str) -> list[Instance] | None:
    try:
        async with asyncio.timeout(_LIST_S), Passage.request(core, node, "GET", _LIST) as passage:
            head = await passage.head()
            data = b"".join([part async for part in passage.body()])
        if head.status != 200:
            raise faults.decode(msgspec.json.decode(data)["error"])
        rows: list[Instance] = msgspec.json.decode(data, type=known(list[Instance]))
    except (NativertError, TimeoutError, msgspec.DecodeError):
        return None
    others(core).has(node, {row.instance: row.name for row in rows})
    return rows
