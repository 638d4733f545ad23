"""Functions called by name with text for parameters, as evals are: served, and asked.

An answer is {"result": any} or {"error": int, "error_msg": str}; callers of fog05 test `error`
for truth, so it is never 0. A refusal of the kernel has the negative errno.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, get_type_hints

from nativert.errors import Code, DescriptorError, NativertError

Reply = dict[str, Any]
# Calls one function: its name and its parameters as text.
Call = Callable[[str, Mapping[str, str]], Reply]

_TRUE: Final = frozenset({"true", "1", "yes"})
_FALSE: Final = frozenset({"false", "0", "no", "none", ""})
# Where one number of fog05 has one meaning here.
_CODES: Final = {
    code.fog05: code
    for code in (Code.NOT_FOUND, Code.IMAGE, Code.NETWORK, Code.REQUIREMENTS, Code.LAUNCHER)
}
_NOT_SAID: Final = -1  # what the reference OS plugin answers for everything that failed


def failure(e: NativertError | OSError) -> Reply:
    """Return the answer that tells of *e*."""
    if isinstance(e, OSError):
        where = f": {e.filename}" if e.filename else ""
        text = f"{e.strerror or e}{where}"
        return {"error": -e.errno if e.errno else _NOT_SAID, "error_msg": text}
    return {"error": e.code.fog05 or Code.FAILED.fog05, "error_msg": str(e)}


def result_of(reply: Mapping[str, Any], what: str) -> Any:
    """Return the result; raises OSError or NativertError for an answer that tells of a failure.

    *what* names the question in the error.
    """
    error = reply.get("error")
    if error is None:
        return reply.get("result")
    text = f"{what}: {reply.get('error_msg') or error}"
    # -1 is EPERM, but others say it for whatever went wrong.
    if isinstance(error, int) and error < _NOT_SAID:
        raise OSError(-error, text)
    code = _CODES.get(error, Code.FAILED) if isinstance(error, int) else Code.FAILED
    raise NativertError(text, code=code)


def serve(functions: Mapping[str, Callable[..., Any]]) -> Call:
    """Return the caller of *functions*; their annotations say what the text becomes."""
    signatures = {name: _parameters(function) for name, function in functions.items()}

    def call(name: str, parameters: Mapping[str, str]) -> Reply:
        try:
            if name not in functions:
                raise NativertError(f"{name}: no such function", code=Code.NOT_FOUND)
            return {"result": functions[name](**_decoded(name, signatures[name], parameters))}
        except (NativertError, OSError) as e:
            return failure(e)

    return call


def arguments(**values: object) -> dict[str, str]:
    """Return parameters as fog05 writes them: JSON for objects and lists, else str()."""
    return {
        name: json.dumps(value) if isinstance(value, (dict, list)) else str(value)
        for name, value in values.items()
    }


def methods(served: object, names: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """Return the methods of an object by name."""
    return {name: getattr(served, name) for name in names}


_Parameters = Mapping[str, tuple[Any, bool]]


def _parameters(function: Callable[..., Any]) -> _Parameters:
    hints = get_type_hints(function)
    return {
        name: (hints[name], parameter.default is inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
    }


def _decoded(name: str, known: _Parameters, given: Mapping[str, str]) -> dict[str, Any]:
    for parameter in given:
        if parameter not in known:
            accepted = ", ".join(known) or "nothing"
            raise DescriptorError(f"{name}.{parameter}", f"is not known: expected {accepted}")
    decoded = {}
    for parameter, (kind, required) in known.items():
        if parameter in given:
            where = f"{name}.{parameter}"
            decoded[parameter] = _value(where, kind, given[parameter])
        elif required:
            raise DescriptorError(f"{name}.{parameter}", "is required")
    return decoded


def _value(where: str, kind: Any, text: str) -> Any:
    if not isinstance(text, str):
        raise DescriptorError(where, "is not text")
    if kind is bool:
        word = text.lower()
        if word not in _TRUE | _FALSE:
            raise DescriptorError(where, f"cannot be {text[:80]!r}: expected True or False")
        return word in _TRUE
    if kind is int:
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise DescriptorError(where, f"cannot be {text[:80]!r}: expected a number")
        return int(text)
    if kind is str:
        if "\0" in text:
            raise DescriptorError(where, "cannot hold NUL")
        return text
    return _json(where, kind, text)


def _json(where: str, kind: Any, text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DescriptorError(where, f"is not JSON: {e}") from None
    wanted = dict if kind in (dict, dict[str, Any]) else list
    if not isinstance(value, wanted):
        raise DescriptorError(where, f"is not a JSON {'object' if wanted is dict else 'list'}")
    return value
