"""cpu.shares (v1) and cpu.weight (v2) for the same share of a contended CPU.

The curve is the one of the OCI runtimes (github.com/opencontainers/cgroups,
ConvertCPUSharesToCgroupV2Value; crun.1.md): with l = log2(shares),
weight = 10^((l^2 + 125 l) / 612 - 7/34). It passes through (2, 1), (1024, 100) and
(262144, 10000), so both ends and both defaults meet. The older straight line between the
ends does not: it makes the default weight 2.5 times the default shares.
"""

from __future__ import annotations

import math
from typing import Final

WEIGHT_MIN: Final = 1
WEIGHT_MAX: Final = 10000
WEIGHT_DEFAULT: Final = 100
SHARES_DEFAULT: Final = 1024
_SHARES_MIN: Final = 2
_SHARES_MAX: Final = 262144


def shares_from_weight(weight: int) -> int:
    """Return the v1 cpu.shares for a v2 cpu.weight of 1..10000."""
    # The positive root of l^2 + 125 l - 612 (log10(weight) + 7/34) = 0.
    constant = 612 * math.log10(weight) + 126
    exponent = (math.sqrt(125 * 125 + 4 * constant) - 125) / 2
    return round(2**exponent)


def weight_from_shares(shares: int) -> int:
    """Return the v2 cpu.weight for a v1 cpu.shares, the inverse of shares_from_weight."""
    exponent = math.log2(min(max(shares, _SHARES_MIN), _SHARES_MAX))
    return round(10 ** ((exponent * exponent + 125 * exponent) / 612 - 7 / 34))
