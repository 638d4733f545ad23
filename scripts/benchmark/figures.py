"""Samples, percentiles, and the two forms of the result: a table and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

MODES: Final = ("cold", "hot")
# What a first honest version must reach: crun's p50 divided by ours, by operation.
MUST: Final = {
    "configure": 3.5,
    "configure-veth": 2.2,
    "run": 1.5,
    "pause": 10.0,
    "resume": 10.0,
    "scale": 3.5,
    "exec": 8.0,
    "stop": 3.0,
    "clean": 2.2,
}
# Operations that are compared with the peers' samples of another one: they have no network.
COUNTERPART: Final = {"configure-veth": "configure", "clean-veth": "clean"}


class Samples:
    """Times in microseconds by who, operation and mode."""

    def __init__(self) -> None:
        self._by: dict[tuple[str, str, str], list[float]] = {}

    def add(self, who: str, operation: str, mode: str, us: float) -> None:
        """Keep one sample."""
        self._by.setdefault((who, operation, mode), []).append(us)

    def percentile(self, who: str, operation: str, mode: str, percent: int) -> float | None:
        """Return a percentile by nearest rank, or None without samples."""
        samples = sorted(self._by.get((who, operation, mode), ()))
        if not samples:
            return None
        return samples[max(0, math.ceil(len(samples) * percent / 100) - 1)]

    def rows(self, operations: Sequence[str]) -> list[dict[str, Any]]:
        """Return one row for each operation and mode that nativert has samples of."""
        rows = []
        for mode in MODES:
            for operation in operations:
                ours = self.percentile("nativert", operation, mode, 50)
                if ours is None:
                    continue
                theirs = COUNTERPART.get(operation, operation)
                crun = self.percentile("crun", theirs, mode, 50)
                rows.append(
                    {
                        "operation": operation,
                        "mode": mode,
                        "nativert_p50_us": round(ours, 1),
                        "nativert_p99_us": _round(self.percentile("nativert", operation, mode, 99)),
                        "crun_p50_us": _round(crun),
                        "runc_p50_us": _round(self.percentile("runc", theirs, mode, 50)),
                        "ratio_to_crun": None if crun is None else round(ours / crun, 4),
                    }
                )
        return rows

    def table(self, operations: Sequence[str]) -> Iterable[str]:
        """Yield the rows as lines; ``must`` is for cold, which is what a daemon sees."""
        yield (
            f"{'operation':15}{'mode':5}{'nativert p50':>13}{'p99':>8}{'crun':>8}{'runc':>8}"
            f"{'bwrap':>8}{'to crun':>9}  must"
        )
        for row in self.rows(operations):
            operation, mode = row["operation"], row["mode"]
            ratio = row["ratio_to_crun"]
            must = MUST.get(operation)
            judged = ""
            if must is not None and ratio is not None:
                reached = "reached" if ratio <= 1 / must else "MISSED"
                judged = f"1/{must:g} {reached}" if mode == "cold" else ""
            yield (
                f"{operation:15}{mode:5}{row['nativert_p50_us']:13.0f}"
                f"{row['nativert_p99_us']:8.0f}{_cell(row['crun_p50_us'])}"
                f"{_cell(row['runc_p50_us'])}"
                f"{_cell(self.percentile('bwrap', operation, mode, 50))}"
                f"{'' if ratio is None else f'1/{1 / ratio:.1f}':>9}  {judged}"
            )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _cell(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.0f}"
