"""Whether this node has what an FDU requires, as fog05's ``check`` compares it.

Admission only: nothing is reserved or limited by it.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

from nativert.errors import Code, NativertError
from nativert.fdu.descriptor import ComputationRequirements
from nativert.runtime.protocols import Os

_ARCHITECTURES: Final = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}


def _architecture(word: str) -> str:
    return _ARCHITECTURES.get(word.lower(), word.lower())


def _refuse(what: str, wanted: object, has: object) -> None:
    raise NativertError(
        f"computation_requirements.{what}: {wanted} required, this node has {has}",
        code=Code.REQUIREMENTS,
        hint="lower the requirement, or choose another node",
    )


def check_machine(requirements: ComputationRequirements) -> None:
    """Refuse what this machine never has: architecture, cpus, MHz."""
    if requirements.cpu_arch and _architecture(requirements.cpu_arch) != platform.machine():
        _refuse("cpu_arch", requirements.cpu_arch, platform.machine())
    count = len(os.sched_getaffinity(0))
    if requirements.cpu_min_count > count:
        _refuse("cpu_min_count", requirements.cpu_min_count, count)
    if requirements.cpu_min_freq:
        import psutil

        frequencies = psutil.cpu_freq(percpu=True)
        mhz = max((each.max or each.current for each in frequencies), default=0.0)
        # A virtual machine or an arm64 kernel may not tell; then nothing can be compared.
        if mhz and requirements.cpu_min_freq > mhz:
            _refuse("cpu_min_freq", f"{requirements.cpu_min_freq} MHz", f"{mhz:.0f} MHz")


def check_free(requirements: ComputationRequirements, host: Os, directory: Path) -> None:
    """Refuse what this machine does not have free at the moment: memory and disk."""
    if requirements.ram_size_mb:
        import psutil

        free = psutil.virtual_memory().available / (1 << 20)
        if requirements.ram_size_mb > free:
            _refuse("ram_size_mb", requirements.ram_size_mb, f"{free:.0f} free")
    if requirements.storage_size_gb:
        free = host.free_bytes(directory) / (1 << 30)
        if requirements.storage_size_gb > free:
            _refuse("storage_size_gb", requirements.storage_size_gb, f"{free:.1f} free")
