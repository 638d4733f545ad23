"""Verdicts as they are told by processes that saw nothing of the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import scale
from nodes import MakeNode, until

from nativert.runtime.views import End

Cli = Callable[..., Any]


def told(cli: Cli, make_node: MakeNode, ref: str) -> End:
    """Return the verdict as other processes tell it, the second without looking again."""

    def look() -> Any:
        native = json.loads(cli("inspect", ref, "-o", "json").stdout)["native"]
        return native["state"] not in ("RUNNING", "PAUSED") and native

    first = until(look, deadline_s=scale.LONG_S)["end"]
    (row,) = json.loads(cli("ps", "-a", "-o", "json").stdout)
    assert row["end"] == first
    with make_node() as later:
        noted = [e.data["end"] for e in later.events() if e.data.get("end")]
    assert noted[-1] == first
    return msgspec.convert(first, End)
