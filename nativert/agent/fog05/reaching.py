"""Tells in the log which nodes cannot be reached: Zenoh itself tries again without a word."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from nativert.agent.logs import LOGGER
from nativert.plugin.zenoh_credentials import Credentials
from nativert.plugin.zenoh_refusal import look

_FIRST_S: Final = 5.0
_LONGEST_S: Final = 300.0


def tell(endpoints: Iterable[str], shown: Credentials | None, stopped: threading.Event) -> None:
    """Look at each endpoint until it lets this node in; what is seen is told when it changes."""
    told: dict[str, str] = dict.fromkeys(endpoints, "")
    wait_s = _FIRST_S
    while told and not stopped.wait(wait_s):
        for endpoint, before in list(told.items()):
            found = look(endpoint, shown)
            if found.open:
                del told[endpoint]
                if before:
                    LOGGER.info("%s: is there, and lets this node in", endpoint)
            elif found.seen != before:
                told[endpoint] = found.seen
                LOGGER.warning("%s: not connected: %s", endpoint, found.seen)
        wait_s = min(wait_s * 2, _LONGEST_S)
