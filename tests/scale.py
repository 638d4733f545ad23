"""How fast this machine is beside an ordinary one: NATIVERT_SCALE, 1 unless told.

An emulated machine is 8 to 30 times slower (scripts/vm-test says 0.1): a deadline is longer there,
and what is repeated is repeated less often.
"""

from __future__ import annotations

import os
from collections.abc import Callable

SCALE = float(os.environ.get("NATIVERT_SCALE", "1"))


def seconds(ordinary_s: float) -> float:
    """Return how long what takes at most *ordinary_s* may take here."""
    return ordinary_s / SCALE


def count(ordinary: int, *, least: int = 1) -> int:
    """Return how often to do what is done *ordinary* times on an ordinary machine."""
    return max(least, round(ordinary * SCALE))


# How long anything is waited for that has to come. It is there so that a test ends that would
# hang, and says nothing of how fast anything is: other work on the machine may take most of it.
LONG_S = seconds(60)


def quickest(act: Callable[[], float], *, below_s: float, times: int = 10) -> float:
    """Return the least of what *act* says it took, as soon as it is below *below_s*.

    Other work on the machine only makes it longer: what always takes that long is found all the
    same.
    """
    least = act()
    for _ in range(times - 1):
        if least < below_s:
            break
        least = min(least, act())
    return least
