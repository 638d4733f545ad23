"""Functions called by name with text: what they take, and the shape of every answer."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import Code, DescriptorError, NativertError, TransitionError
from nativert.plugin.string_api import arguments, failure, result_of, serve

TEXT = st.text(max_size=20)


def plain(text: str, number: int = 0, flag: bool = False) -> list[object]:
    return [text, number, flag]


def several(names: list[str]) -> list[str]:
    return names


def tree(value: dict[str, Any]) -> dict[str, Any]:
    return value


def fails(code: str) -> None:
    if code == "os":
        raise FileNotFoundError(errno.ENOENT, "no such file", "/x")
    raise NativertError("refused", code=Code[code])


CALL = serve({"plain": plain, "several": several, "tree": tree, "fails": fails})


@pytest.mark.parametrize(
    ("text", "flag"),
    [("True", True), ("true", True), ("1", True), ("False", False), ("None", False), ("", False)],
)
def test_text_becomes_what_the_function_takes(text: str, flag: bool) -> None:
    assert CALL("plain", {"text": "a;b", "number": "12", "flag": text}) == {
        "result": ["a;b", 12, flag]
    }


def test_objects_and_lists_travel_as_json() -> None:
    assert CALL("several", arguments(names=["a", "b"])) == {"result": ["a", "b"]}
    assert CALL("tree", arguments(value={"a": {"b": None}})) == {"result": {"a": {"b": None}}}
    assert arguments(a=True, b=None, c=5, d="x") == {"a": "True", "b": "None", "c": "5", "d": "x"}


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("missing", {}, "no such function"),
        ("plain", {}, "plain.text: is required"),
        ("plain", {"text": "", "other": ""}, "plain.other: is not known"),
        ("plain", {"text": "\0"}, "NUL"),
        ("plain", {"text": "", "number": "-1"}, "expected a number"),
        ("plain", {"text": "", "number": "٣"}, "expected a number"),
        ("plain", {"text": "", "flag": "maybe"}, "expected True or False"),
        ("several", {"names": "{}"}, "is not a JSON list"),
        ("tree", {"value": "[" * 100_000}, "is not JSON"),
    ],
)
def test_what_is_not_understood_is_refused(
    name: str, parameters: dict[str, str], told: str
) -> None:
    reply = CALL(name, parameters)
    assert told in reply["error_msg"]
    assert isinstance(reply["error"], int)
    assert reply["error"] != 0


@pytest.mark.parametrize("code", list(Code))
def test_an_error_is_an_integer_that_is_true(code: Code) -> None:
    reply = CALL("fails", {"code": code.name})
    assert reply == {"error": code.fog05 or Code.FAILED.fog05, "error_msg": "refused"}
    assert reply["error"]


def test_a_refusal_of_the_kernel_keeps_its_errno() -> None:
    reply = CALL("fails", {"code": "os"})
    assert reply == {"error": -errno.ENOENT, "error_msg": "no such file: /x"}
    with pytest.raises(FileNotFoundError, match="read_file /x: no such file"):
        result_of(reply, "read_file /x")


def test_an_error_of_somebody_else_is_told() -> None:
    assert result_of({"result": 5}, "x") == 5
    assert result_of({"result": None, "error": None}, "x") is None
    for error in (-1, 0, "text", 4711, True):
        with pytest.raises(NativertError, match="ask: why") as e:
            result_of({"error": error, "error_msg": "why"}, "ask")
        assert e.value.code is Code.FAILED
    with pytest.raises(NativertError) as e:
        result_of({"error": 22}, "ask")
    assert e.value.code is Code.NETWORK


@given(st.text(), st.dictionaries(st.sampled_from(["text", "number", "flag", "x"]), TEXT))
def test_no_text_makes_it_raise(name: str, parameters: dict[str, str]) -> None:
    for function in (name, "plain"):
        reply = CALL(function, parameters)
        assert set(reply) in ({"result"}, {"error", "error_msg"})


@given(st.dictionaries(TEXT, st.one_of(st.none(), st.integers(), TEXT)))
def test_every_tree_survives_the_way(value: dict[str, Any]) -> None:
    assert CALL("tree", arguments(value=value)) == {"result": value}


def test_typed_errors_have_their_text() -> None:
    assert "allowed: run" in failure(TransitionError("stop", "CONFIGURED", ("run",)))["error_msg"]
    assert failure(DescriptorError("a.b", "is wrong")) == {
        "error": 1,
        "error_msg": "a.b: is wrong",
    }
