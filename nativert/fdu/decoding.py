"""From plain values to msgspec structs, with errors that name path, value and what is accepted."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import msgspec

from nativert.errors import DescriptorError
from nativert.fdu.document import join
from nativert.fdu.known import known
from nativert.fdu.quantity import FieldError, show

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

_AT: Final = " - at `$"
_STEP: Final = re.compile(r"\.([^.\[]+)|\[([0-9]+)\]")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An object of a descriptor: null is the same as absent, unknown keys are refused."""

    # Keys that fog05 or a later version knows, and why they are refused unless empty.
    REFUSED: ClassVar[Mapping[str, str]] = NOTHING
    # The same for single values of a field.
    REFUSED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = NOTHING


_T = TypeVar("_T", bound=Part)


class _Field(NamedTuple):
    required: bool
    part: type[Part] | None
    accepted: tuple[object, ...]  # of a Literal


def build(raw: object, kind: type[_T]) -> _T:
    """The struct that `raw` describes; raises `DescriptorError`."""
    cleaned = _clean(raw, kind, "")
    try:
        return msgspec.convert(cleaned, known(kind))
    except msgspec.ValidationError as e:
        raise _refusal(e, cleaned, kind) from None


@cache
def fields(kind: type[Part]) -> Mapping[str, _Field]:
    """The fields of a struct by the key that they have in a document."""
    return {
        field.encode_name: _Field(field.required, _find_part(field.type), _accepted(field.type))
        for field in msgspec.structs.fields(kind)
    }


def _find_part(annotation: Any) -> type[Part] | None:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    found = (_find_part(argument) for argument in typing.get_args(annotation))
    return next((part for part in found if part is not None), None)


def _accepted(annotation: Any) -> tuple[object, ...]:
    """What a field with fixed words takes; empty for every other field."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    words = [word for argument in typing.get_args(annotation) for word in _accepted(argument)]
    if words and _takes(annotation, int):
        words.append("a number")
    if words and _takes(annotation, Part):
        words.append("an object")
    return tuple(dict.fromkeys(words))


def _takes(annotation: Any, kind: type) -> bool:
    if isinstance(annotation, type):
        return issubclass(annotation, kind)
    return any(_takes(argument, kind) for argument in typing.get_args(annotation))


def _clean(raw: object, kind: type[Part], path: str) -> dict[str, object]:
    """Take away nulls and empty refused keys; refuse unknown, refused and missing ones."""
    if not isinstance(raw, dict):
        raise DescriptorError(path or "descriptor", f"cannot be {show(raw)}: expected an object")
    known = fields(kind)
    result: dict[str, object] = {}
    for key, value in raw.items():
        where = join(path, key)
        if key in kind.REFUSED:
            if not _empty(value):
                raise DescriptorError(
                    where, f"{show(value)} is not supported yet: {kind.REFUSED[key]}"
                )
        elif key not in known:
            accepted = ", ".join(sorted(known))
            raise DescriptorError(where, f"is not a known field: expected one of {accepted}")
        elif value is not None:
            words = kind.REFUSED_VALUES.get(key, NOTHING)
            if isinstance(value, str) and value in words:
                accepted = ", ".join(map(str, known[key].accepted))
                reason = f"{value} is not supported yet: {words[value]}"
                raise DescriptorError(where, f"{reason}; expected {accepted}")
            result[key] = _clean_member(value, known[key].part, where)
    for key, field in known.items():
        if field.required and key not in result:
            raise DescriptorError(join(path, key), "is required")
    return result


def _clean_member(value: object, part: type[Part] | None, path: str) -> object:
    if part is None:
        return value
    if isinstance(value, dict):
        return _clean(value, part, path)
    if isinstance(value, list):
        return [
            _clean(member, part, f"{path}[{index}]") if isinstance(member, dict) else member
            for index, member in enumerate(value)
        ]
    return value


def _empty(value: object) -> bool:
    # Not False: it equals 0, but is no number.
    return value is None or (value is not False and value in ("", 0, [], {}))


def _refusal(error: msgspec.ValidationError, cleaned: object, kind: type[Part]) -> DescriptorError:
    cause = error.__cause__
    own = isinstance(cause, FieldError)
    # From the right, or after our own text: what comes before may hold a value that looks alike.
    text, _, steps = str(error).removeprefix(str(cause) if own else "").rpartition(_AT)
    steps = steps.removesuffix("`")
    path = steps.removeprefix(".")
    if isinstance(cause, FieldError):
        separator = "." if path and cause.field else ""
        return DescriptorError(f"{path}{separator}{cause.field}", cause.reason)
    value: Any = cleaned
    part: type[Part] | None = kind
    field: _Field | None = None
    for name, index in _STEP.findall(steps.removesuffix("[...]")):
        if name:
            field = fields(part)[name] if part else None
            part = field.part if field else None
            value = value[name]
        else:
            value = value[int(index)]
    if path.endswith("[...]"):
        # msgspec does not say which member of a mapping it means; ours all hold strings.
        key, value = next(item for item in value.items() if not isinstance(item[1], str))
        path = join(path.removesuffix("[...]"), key)
    return DescriptorError(path, f"cannot be {show(value)}: {_explain(text, value, field)}")


def _explain(text: str, value: object, field: _Field | None) -> str:
    if text.startswith("Invalid enum value") and field:
        return "expected one of " + ", ".join(map(str, field.accepted))
    text = text[:1].lower() + text[1:].replace("`", "")
    unquoted = isinstance(value, (bool, int, float)) and text.startswith("expected str")
    return f"{text}; put it in quotes" if unquoted else text
