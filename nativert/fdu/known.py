"""Types that msgspec may be asked for by several threads."""

from __future__ import annotations

import threading
from typing import Final, TypeVar

import msgspec

_T = TypeVar("_T")

_lock: Final = threading.Lock()
_known: Final[set[object]] = set()


def known(kind: type[_T]) -> type[_T]:
    """Return *kind*, for msgspec to decode, once msgspec has taken it apart.

    msgspec 0.22 does that at the first use, and shows other threads what it has not filled in
    yet: where a struct or dataclass holds another one, they end the process by SIGSEGV.
    """
    if kind not in _known:
        with _lock:
            msgspec.json.Decoder(kind)
            _known.add(kind)
    return kind
