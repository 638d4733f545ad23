"""JSON and YAML text as plain values: bounded, and with nothing silently repaired.

Refuses what the usual parsers let pass: duplicate keys, NaN and infinities, integers beyond 64
bits, lone surrogates, aliases, tags. YAML follows the core schema of YAML 1.2, in which `yes`,
`22:22` and `2020-01-01` are strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from nativert.errors import DescriptorError
from nativert.fdu.quantity import show

if TYPE_CHECKING:
    from yaml.events import Event

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 1 << 16

_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False
}  # fmt: skip
_INTEGER: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN)"
)
# Enough to see that a number is out of range; int() itself refuses more than 4300 digits.
_DIGITS: Final = 40


class _Object(dict[str, Any]):
    """A mapping that remembers a key which stood in it twice."""

    duplicate: str | None = None

    def put(self, key: str, value: object) -> None:
        if key in self:
            self.duplicate = key
        self[key] = value


def read(data: bytes, *, source: str, path: str = "") -> object:
    """The value in `data`: JSON if it starts with `{`, else YAML.

    Raises `DescriptorError` with the path, below `path`, of what is not acceptable, or with
    `source` if the text cannot be read at all.
    """
    if len(data) > MAX_BYTES:
        raise DescriptorError(source, f"has {len(data)} bytes: expected at most {MAX_BYTES}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DescriptorError(source, f"is not UTF-8 at byte {e.start}") from None
    try:
        tree = _read_json(text) if text.lstrip().startswith("{") else _read_yaml(text)
    except RecursionError:
        raise DescriptorError(source, f"is nested deeper than {MAX_DEPTH}") from None
    except ValueError as e:
        raise DescriptorError(source, str(e)) from None
    return _Plain(source).copy(tree, path, 0)


def join(path: str, key: str) -> str:
    """The path of a member; a key that is no plain word stands in brackets."""
    if not _PLAIN_KEY.fullmatch(key):
        return f"{path}[{show(key)}]"
    return f"{path}.{key}" if path else key


def _read_json(text: str) -> object:
    import json

    def pairs(members: list[tuple[str, object]]) -> _Object:
        result = _Object()
        for key, value in members:
            result.put(key, value)
        return result

    try:
        return json.loads(
            text, object_pairs_hook=pairs, parse_int=lambda digits: int(digits[:_DIGITS])
        )
    except json.JSONDecodeError as e:
        text = f"is not JSON: line {e.lineno}, column {e.colno}: {e.msg[:1].lower()}{e.msg[1:]}"
        raise ValueError(text) from None


def _read_yaml(text: str) -> object:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Builder().build(yaml.parse(text, Loader=loader))
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"is not YAML: {where}{e.problem or e.context}") from None
    except yaml.YAMLError as e:
        raise ValueError(f"is not YAML: {ascii(str(e).splitlines()[0])[1:-1]}") from None
    except OverflowError:
        # PyYAML without its C part takes any number for an escaped character.
        raise ValueError("is not YAML: escape beyond Unicode") from None


class _Builder:
    """Values from the events of a YAML parser, without recursion."""

    def __init__(self) -> None:
        self._root: list[object] = []
        self._open: list[_Object | list[object]] = [self._root]
        self._keys: list[str | None] = [None]

    def build(self, events: Iterator[Event]) -> object:
        """The only document of the stream; raises `ValueError`."""
        for event in events:
            self._take(event)
        if not self._root:
            raise ValueError("is empty")
        return self._root[0]

    def _take(self, event: Event) -> None:
        import yaml

        if isinstance(event, yaml.DocumentStartEvent) and self._root:
            raise _at(event, "expected one document")
        if isinstance(event, yaml.NodeEvent):
            if event.anchor is not None:
                raise _at(event, "anchors and aliases are not accepted: write the value out")
            tag = getattr(event, "tag", None)
            if tag not in {None, "!", "tag:yaml.org,2002:str"}:
                raise _at(event, f"tag {show(tag)} is not accepted")
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            if self._expects_key():
                raise _at(event, "a key must be a word")
            value: _Object | list[object] = (
                _Object() if isinstance(event, yaml.MappingStartEvent) else []
            )
            self._place(value)
            self._open.append(value)
            self._keys.append(None)
            if len(self._open) > MAX_DEPTH + 1:
                raise _at(event, f"is nested deeper than {MAX_DEPTH}")
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._keys.pop()

    def _expects_key(self) -> bool:
        return isinstance(self._open[-1], _Object) and self._keys[-1] is None

    def _scalar(self, event: Any) -> None:
        if self._expects_key():
            self._keys[-1] = event.value
        else:
            plain = not event.style and event.tag is None
            self._place(_resolve(event.value) if plain else event.value)

    def _place(self, value: object) -> None:
        container, key = self._open[-1], self._keys[-1]
        if isinstance(container, _Object):
            assert key is not None
            container.put(key, value)
            self._keys[-1] = None
        else:
            container.append(value)


def _at(event: Event, problem: str) -> ValueError:
    mark = event.start_mark
    assert mark is not None
    return ValueError(f"line {mark.line + 1}, column {mark.column + 1}: {problem}")


def _resolve(text: str) -> object:
    """The value of an unquoted YAML scalar; YAML 1.2, section 10.3.2."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INTEGER.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[:_DIGITS], base)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".", "", 1) if text[-1].isalpha() else text)
    return text


class _Plain:
    """Copies a tree into plain lists and dicts, and refuses values that no field can hold."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._count = 0

    def copy(self, value: object, path: str, depth: int) -> object:
        """The value without our own types; raises `DescriptorError`."""
        where = path or self._source
        self._count += 1
        if self._count > MAX_VALUES:
            raise DescriptorError(self._source, f"has more than {MAX_VALUES} values")
        if depth >= MAX_DEPTH and isinstance(value, (dict, list)):
            raise DescriptorError(self._source, f"is nested deeper than {MAX_DEPTH}")
        if isinstance(value, _Object):
            if value.duplicate is not None:
                raise DescriptorError(join(path, value.duplicate), "is given twice")
            return {
                self._text(key, where): self.copy(member, join(path, key), depth + 1)
                for key, member in value.items()
            }
        if isinstance(value, list):
            return [
                self.copy(member, f"{path}[{index}]", depth + 1)
                for index, member in enumerate(value)
            ]
        if isinstance(value, str):
            return self._text(value, where)
        if isinstance(value, float) and not math.isfinite(value):
            raise DescriptorError(where, f"cannot be {value}: expected a finite number")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise DescriptorError(where, f"cannot be {show(value)}: expected a number of 64 bits")
        return value

    @staticmethod
    def _text(value: str, where: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            reason = f"cannot be {show(value)}: a lone surrogate is no character"
            raise DescriptorError(where, reason) from None
        return value
