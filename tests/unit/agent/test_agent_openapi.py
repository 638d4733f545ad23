"""The description of the API: valid OpenAPI 3.1, and nothing that is served is missing in it."""

from __future__ import annotations

import re

from openapi_spec_validator import OpenAPIV31SpecValidator

from nativert.agent.api.openapi import document
from nativert.agent.api.routes import ROUTES


def test_it_is_valid_and_has_every_route() -> None:
    described = document()
    assert described["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(described).validate()
    operations = {
        (method.upper(), path) for path, methods in described["paths"].items() for method in methods
    }
    assert operations == {(route.method, route.path) for route in ROUTES}


def test_names_and_parameters_are_unique() -> None:
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    for route in ROUTES:
        operation = document()["paths"][route.path][route.method.lower()]
        names = [p["name"] for p in operation.get("parameters", ())]
        assert len(set(names)) == len(names)
        assert set(re.findall(r"{(\w+)}", route.path)) <= set(names)
