"""The parameters of a question as text: ``k=v;k2=v2``, unescaped, as fog05 writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

_JSON: Final = json.JSONDecoder()


def encode(parameters: Mapping[str, str]) -> str:
    """Return the text; a `;` can be in a value that is a JSON object or list, in no other."""
    return ";".join(f"{name}={value}" for name, value in parameters.items())


def decode(text: str) -> dict[str, str]:
    """Return what *text* says; a name alone has the empty value.

    A value that begins like a JSON object or list ends where that ends, so that a descriptor
    with a `;` in it arrives whole.
    """
    found = {}
    at = 0
    while at < len(text):
        separator, end = text.find("=", at), text.find(";", at)
        if separator < 0 or 0 <= end < separator:
            end = len(text) if end < 0 else end
            name, value = text[at:end], ""
        else:
            name, end = text[at:separator], _end(text, separator + 1)
            value = text[separator + 1 : end]
        if name.strip():
            found[name.strip()] = value
        at = end + 1
    return found


def _end(text: str, at: int) -> int:
    if text[at : at + 1] in ("{", "["):
        try:
            end = _JSON.raw_decode(text, at)[1]
        except (ValueError, RecursionError):
            end = -1
        if end == len(text) or text[end : end + 1] == ";":
            return end
    end = text.find(";", at)
    return len(text) if end < 0 else end
