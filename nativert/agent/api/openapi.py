"""The description of the API in OpenAPI 3.1, made from the table of routes."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from nativert import __version__
from nativert.agent.api.messages import Refusal
from nativert.agent.api.routes import FILE, ROUTES, Route

_REF = "#/components/schemas/{name}"


def document() -> dict[str, Any]:
    """Return the whole description."""
    kinds = [Refusal, *(kind for r in ROUTES for kind in (r.answer, r.body, r.query) if kind)]
    unique = [kind for at, kind in enumerate(kinds) if kind not in kinds[:at]]
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    by_kind = list(zip(unique, schemas, strict=True))

    def schema(kind: object) -> dict[str, Any]:
        return next(found for known, found in by_kind if known == kind)

    def resolved(kind: object) -> dict[str, Any]:
        found: dict[str, Any] = components[schema(kind)["$ref"].rpartition("/")[2]]
        return found

    queries = {r.query.__name__ for r in ROUTES if r.query}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        described = _operation(
            route, schema, None if route.query is None else resolved(route.query)
        )
        paths.setdefault(route.path, {})[route.method.lower()] = described
    tree = {
        "openapi": "3.1.0",
        "info": {
            "title": "nativert",
            "version": __version__,
            "description": "One node: its instances, their operations, and what they use. With the "
            "header Nativert-Node: NODE another node answers.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": {n: s for n, s in components.items() if n not in queries}},
    }
    # Defaults that are tuples become the lists that JSON has.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(tree))
    return plain


def _operation(route: Route, schema: Any, query: dict[str, Any] | None) -> dict[str, Any]:
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": "a UUID, a unique prefix of one, or a name; NODE/ may be before it",
            "schema": {"type": "string"},
        }
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    if query is not None:
        parameters += [
            {
                "name": name,
                "in": "query",
                "required": name in query.get("required", ()),
                "schema": member,
            }
            for name, member in query["properties"].items()
        ]
    answer: dict[str, Any] = {"description": "done"}
    if route.answer is not None:
        form = "application/x-ndjson" if route.lines else route.form
        answer["content"] = {form: {} if form == FILE else {"schema": schema(route.answer)}}
    refused = {"application/json": {"schema": schema(Refusal)}}
    described: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {
            str(route.status): answer,
            "default": {"description": "refused or failed", "content": refused},
        },
    }
    if parameters:
        described["parameters"] = parameters
    if route.raw:
        described["requestBody"] = {"content": {FILE: {}}, "required": True}
    if route.body is not None:
        described["requestBody"] = {"content": {"application/json": {"schema": schema(route.body)}}}
    return described
