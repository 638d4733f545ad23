"""Pressure stall information of one cgroup; see accounting/psi.rst of the kernel."""

from __future__ import annotations

import errno
import re
from typing import Final

from nativert.isolation.cgroups import files
from nativert.isolation.cgroups.limits import Pressure

_SOME: Final = re.compile(r"^some avg10=([0-9.]+)", re.MULTILINE)


def read(directory: str) -> Pressure:
    """Read the pressure of a cgroup2 directory; it needs no controllers, so hybrid has it too."""
    cpu, memory, io = (_some(f"{directory}/{name}.pressure") for name in ("cpu", "memory", "io"))
    return Pressure(cpu, memory, io)


def _some(path: str) -> float | None:
    try:
        text = files.read_optional(path) or ""
    except OSError as error:
        # Switched off: at boot (psi=0), or for this cgroup (cgroup.pressure).
        if error.errno == errno.EOPNOTSUPP:
            return None
        raise
    found = _SOME.search(text)
    return None if found is None else float(found[1]) / 100
