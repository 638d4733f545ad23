"""The one table of the API: what is served, what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from nativert.agent.api import elsewhere, files, instances, questions, sessions, streams
from nativert.agent.api.messages import (
    Cursor,
    Defined,
    Destination,
    Environment,
    EventsQuery,
    Everywhere,
    Follow,
    Gc,
    Health,
    Kill,
    KnownNode,
    Landed,
    Place,
    Placed,
    Redefined,
    Removal,
    Scale,
    State,
    StatsQuery,
    Version,
    Wait,
)
from nativert.runtime.views import Check, Entry, Event, Figures, Instance, Leftover, LogLine

# The bytes of a file, as they are.
FILE = "application/octet-stream"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation or question.

    `answer` is None for an answer without a body; `form` is the content type of one that has
    another than JSON; `lines`: the answer is one such object a line; `raw`: the request's body is
    a file.
    """

    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    answer: Any = None
    query: type | None = None
    body: type | None = None
    status: int = 200
    form: str = "application/json"
    lines: bool = False
    raw: bool = False


_ONE = "/v1/instances/{ref}"
ROUTES: tuple[Route, ...] = (
    Route(
        "POST", "/v1/instances", "define", "Make an instance of a descriptor.",
        instances.define, answer=Instance, body=Defined, status=201,
    ),
    Route(
        "GET", "/v1/instances", "list", "List every instance, in the order of definition.",
        instances.list_all, answer=list[Instance],
    ),
    Route(
        "GET", _ONE, "get", "Show one instance.", instances.get, answer=Instance,
    ),
    Route(
        "DELETE", _ONE, "remove",
        "Stop, clean and undefine an instance: its /data and its log go too.",
        instances.remove, query=Removal, status=204,
    ),
    Route(
        "POST", f"{_ONE}/redefine", "redefine",
        "Have another descriptor in the place of a DEFINED instance's own; its /data stays.",
        instances.redefine, answer=Instance, body=Redefined,
    ),
    Route(
        "POST", f"{_ONE}/configure", "configure",
        "Create image, cgroups, namespaces, file system, network. With Accept: "
        "application/x-ndjson the progress of a download is told line by line.",
        instances.configure, answer=Instance,
    ),
    Route(
        "POST", f"{_ONE}/start", "start", "Start the application.",
        instances.start, answer=Instance, body=Environment,
    ),
    Route(
        "POST", f"{_ONE}/restart", "restart", "Stop and start the application.",
        instances.restart, answer=Instance,
    ),
    Route(
        "POST", f"{_ONE}/stop", "stop", "Send the stop signal; after the grace period, kill.",
        instances.stop, answer=Instance,
    ),
    Route(
        "POST", f"{_ONE}/pause", "pause", "Freeze the application.",
        instances.pause, answer=Instance,
    ),
    Route(
        "POST", f"{_ONE}/resume", "resume", "Thaw the application.",
        instances.resume, answer=Instance,
    ),
    Route(
        "POST", f"{_ONE}/scale", "scale", "Change the limits of the running application.",
        instances.scale, answer=Instance, body=Scale,
    ),
    Route(
        "POST", f"{_ONE}/migrate", "migrate",
        "Move the running instance to another node, with its data.",
        instances.migrate, answer=Landed, body=Destination,
    ),
    Route(
        "POST", f"{_ONE}/clean", "clean", "Remove all that configure has made.",
        instances.clean, answer=Instance,
    ),
    Route(
        "POST", f"{_ONE}/undefine", "undefine", "Forget a defined instance.",
        instances.undefine, status=204,
    ),
    Route(
        "POST", f"{_ONE}/kill", "kill", "Send a signal to the application.",
        instances.kill, body=Kill, status=204,
    ),
    Route(
        "POST", f"{_ONE}/wait", "wait", "Wait for the end of the application.",
        instances.wait, answer=Instance, body=Wait,
    ),
    Route(
        "GET", f"{_ONE}/inspect", "inspect",
        "Show the full record in fog05's form, with a `native` object beside.",
        instances.inspect, answer=dict[str, Any],
    ),
    Route(
        "GET", f"{_ONE}/stats", "stats", "Show what one instance uses.",
        instances.stats, answer=Figures,
    ),
    Route(
        "GET", f"{_ONE}/logs", "logs",
        "Stream what the application has written; `text` is base64, or everything is plain "
        "text with format=text.",
        streams.logs, answer=LogLine, query=Follow, lines=True,
    ),
    Route(
        "GET", f"{_ONE}/exec", "exec",
        "Run a program inside, over a WebSocket; docs/api.md has its messages.",
        sessions.exec_, status=101,
    ),
    Route(
        "GET", f"{_ONE}/files", "list_files",
        "List what a directory below /data holds, in its own order; of a file the file.",
        files.ls, answer=Entry, query=Place, lines=True,
    ),
    Route(
        "GET", f"{_ONE}/file", "get_file", "Send a regular file below /data.",
        files.get, answer=bytes, query=Place, form=FILE,
    ),
    Route(
        "PUT", f"{_ONE}/file", "put_file",
        "Put a file below /data in place at once, once all of it is there; it is the "
        "application's own.",
        files.put, answer=Entry, query=Placed, raw=True,
    ),
    Route(
        "GET", "/v1/stats", "stats_all",
        "Show what the running instances use; with watch=SECONDS again and again, one object "
        "a line.",
        streams.stats, answer=list[Figures], query=StatsQuery,
    ),
    Route(
        "GET", "/v1/events", "events", "Tell what has happened, and with follow what happens.",
        streams.events, answer=Event, query=EventsQuery, lines=True,
    ),
    Route(
        "GET", "/v1/events/latest", "latest_event", "Tell the number of the newest event.",
        questions.latest_event, answer=Cursor,
    ),
    Route(
        "GET", "/v1/nodes", "nodes", "List this node and every other that it has seen.",
        elsewhere.nodes, answer=list[KnownNode],
    ),
    Route(
        "GET", "/v1/nodes/instances", "everywhere", "List the instances of all nodes.",
        elsewhere.everywhere, answer=Everywhere,
    ),
    Route(
        "GET", "/v1/doctor", "doctor", "Tell what this host cannot enforce.",
        questions.doctor, answer=list[Check],
    ),
    Route(
        "POST", "/v1/gc", "gc", "Remove what no instance of this node owns any more.",
        questions.gc, answer=list[Leftover], body=Gc,
    ),
    Route(
        "GET", "/v1/states", "states", "Show the state machine.",
        questions.states, answer=list[State],
    ),
    Route(
        "GET", "/v1/schema", "schema", "Show the JSON Schema of descriptors.",
        questions.schema, answer=dict[str, Any],
    ),
    Route(
        "GET", "/v1/version", "version", "Show the versions of agent, Python and kernel.",
        questions.version, answer=Version,
    ),
    Route(
        "GET", "/openapi.json", "openapi", "Show this description.",
        questions.openapi, answer=dict[str, Any],
    ),
    Route(
        "GET", "/metrics", "metrics", "Show figures for Prometheus.",
        questions.metrics, answer=str, form="text/plain",
    ),
    Route(
        "GET", "/healthz", "healthz", "Tell that the agent is alive.",
        questions.healthz, answer=Health,
    ),
)  # fmt: skip
