"""CPU limits in cores as quota and period of the CFS bandwidth controller."""

from __future__ import annotations

from typing import Final

PERIOD_US: Final = 100_000
# The kernel takes periods of 1 ms to 1 s and no quota below 1 ms (sched-bwc.rst).
_PERIOD_MAX_US: Final = 1_000_000
QUOTA_MIN_US: Final = 1_000
CORES_MIN: Final = QUOTA_MIN_US / _PERIOD_MAX_US


def from_cores(cores: float) -> tuple[int, int]:
    """Return (quota us, period us); the period grows where the quota would be too short."""
    period = PERIOD_US if cores * PERIOD_US >= QUOTA_MIN_US else _PERIOD_MAX_US
    return max(round(cores * period), QUOTA_MIN_US), period


def to_cores(quota_us: int, period_us: int) -> float:
    """Return the cores that a quota allows."""
    return quota_us / period_us
