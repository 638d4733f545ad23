from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.plugin import parameters

_name = st.text(alphabet="abcdefgh_", min_size=1, max_size=8)
_plain = st.text(max_size=30).filter(lambda v: ";" not in v and not v.startswith(("{", "[")))
_json = st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4).map(json.dumps)


@given(st.dictionaries(_name, st.one_of(_plain, _json), max_size=5))
def test_what_is_written_is_read(values: dict[str, str]) -> None:
    assert parameters.decode(parameters.encode(values)) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("env", {"env": ""}),
        ("env=", {"env": ""}),
        ("env=A=1,B=x=y", {"env": "A=1,B=x=y"}),
        ('d={"args":["a; b"]};x=1', {"d": '{"args":["a; b"]}', "x": "1"}),
        ('d=["a;b"]', {"d": '["a;b"]'}),
        ("d={not json;x=1", {"d": "{not json", "x": "1"}),
        ("a;b=2", {"a": "", "b": "2"}),
        (";;", {}),
    ],
)
def test_reading(text: str, values: dict[str, str]) -> None:
    assert parameters.decode(text) == values
