"""Where records, statuses and questions go: what a plugin and an agent need of it.

Keys are fog05's paths. In a selector `*` stands for one chunk and `**` for any number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from nativert.plugin.string_api import Reply

Answer = Callable[[Mapping[str, str]], Reply]


@dataclass(frozen=True, slots=True)
class Sample:
    """One value, JSON as bytes; None for one that was deleted.

    `stamp` is the same for the same put wherever and however often it arrives.
    """

    path: str
    value: bytes | None
    stamp: str


class Closing(Protocol):
    """Something that lasts until it is closed; closing twice is no error."""

    def close(self) -> None:
        """End it."""
        ...


class Connector(Protocol):
    """Everything may be called from any thread."""

    def get(self, selector: str) -> list[Sample]:
        """Return what is there now, by path."""
        ...

    def put(self, path: str, value: bytes) -> None:
        """Put a whole value in place of the one before."""
        ...

    def delete(self, path: str) -> None:
        """Take a value away; safe when absent."""
        ...

    def subscribe(self, selector: str, listener: Callable[[Sample], None]) -> Closing:
        """Call *listener* for what comes from now on, in order, never two at once."""
        ...

    def eval(self, path: str, answer: Answer) -> Closing:
        """Answer the questions to *path*; another answer to it is replaced."""
        ...

    def ask(self, path: str, parameters: Mapping[str, str], *, timeout_s: float) -> Reply:
        """Return the first answer; NativertError NOT_FOUND where nobody answers, TIMEOUT."""
        ...

    def liveliness(self, path: str) -> Closing:
        """Tell that *path* is alive until closed, or until this process ends."""
        ...

    def alive(self, selector: str) -> list[str]:
        """Return the paths that are alive."""
        ...


@lru_cache(maxsize=1024)
def _pattern(selector: str) -> re.Pattern[str]:
    chunks = selector.strip("/").split("/")
    text = ""
    for chunk in chunks:
        if chunk == "**":
            text += "(?:/[^/]+)*"
        else:
            text += "/" + "[^/]*".join(re.escape(part) for part in chunk.split("*"))
    return re.compile(text)


def matches(selector: str, path: str) -> bool:
    """Return whether a path is one of those that a selector means; an end slash is nothing."""
    return _pattern(selector).fullmatch("/" + path.strip("/")) is not None
