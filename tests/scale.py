"""How fast this machine is beside an ordinary one: NATIVERT_SCALE, 1 unless told.

An emulated machine is 8 to 30 times slower (scripts/vm-test says 0.1): a deadline is longer there,
and what is repeated is repeated less often.
"""

from __future__ import annotations

import os

SCALE = float(os.environ.get("NATIVERT_SCALE", "1"))


def seconds(ordinary_s: float) -> float:
    """Return how long what takes at most *ordinary_s* may take here."""
    return ordinary_s / SCALE


def count(ordinary: int, *, least: int = 1) -> int:
    """Return how often to do what is done *ordinary* times on an ordinary machine."""
    return max(least, round(ordinary * SCALE))
