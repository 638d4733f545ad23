"""The limits of an instance: from a descriptor, from a request to scale, to and from JSON."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from nativert.errors import Code, DescriptorError, NativertError
from nativert.fdu.descriptor import Descriptor
from nativert.fdu.known import known
from nativert.isolation.cgroups.limits import IoLimit, Limits

_LARGEST: Final = (1 << 63) - 1
_RATES: Final = ("rbps", "wbps", "riops", "wiops")


def device_number(device: str) -> str:
    """Return "major:minor" of a block device given so or by path; raises DescriptorError."""
    if not device.startswith("/"):
        return device
    try:
        status = os.stat(device)
    except OSError as e:
        raise DescriptorError("native.io.device", f"{device}: {e.strerror}") from e
    if not stat.S_ISBLK(status.st_mode):
        raise DescriptorError("native.io.device", f"{device} is not a block device")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def of_descriptor(descriptor: Descriptor) -> Limits:
    """Return the limits that a descriptor asks for; raises DescriptorError."""
    native = descriptor.native
    return Limits(
        cpu_max=native.cpu.max,
        cpu_weight=native.cpu.weight,
        cpuset=native.cpu.cpuset,
        memory_max=native.memory.max_bytes,
        memory_high=native.memory.high_bytes,
        memory_swap=native.memory.swap_bytes,
        pids_max=native.pids.max,
        io=tuple(
            IoLimit(
                device=device_number(request.device),
                rbps=request.rbps_bytes,
                wbps=request.wbps_bytes,
                riops=request.riops,
                wiops=request.wiops,
            )
            for request in native.io
        ),
    )


def changed(limits: Limits, change: Mapping[str, object]) -> Limits:
    """Return *limits* with the fields of *change* in their place; None unsets.

    io entries replace those of the same device, field by field. Raises NativertError(USAGE).
    """
    names = Limits.__struct_fields__
    unknown = sorted(change.keys() - set(names))
    if unknown:
        raise NativertError(
            f"no such limit: {', '.join(unknown)}",
            code=Code.USAGE,
            hint=f"known: {', '.join(sorted(names))}",
        )
    values: dict[str, Any] = dict(change)
    if values.get("io") is not None:
        try:
            io = _changed_io(limits.io, values["io"])
            values["io"] = [msgspec.structs.asdict(limit) for limit in io]
        except (KeyError, TypeError, AttributeError) as e:
            raise NativertError(f"bad limit: io: {e}", code=Code.USAGE) from e
    elif "io" in values:
        values["io"] = ()
    try:
        asked = msgspec.convert(values, known(Limits), strict=True)
    except msgspec.ValidationError as e:
        raise NativertError(f"bad limit: {e}", code=Code.USAGE) from e
    new = {name: getattr(asked, name) for name in values}
    for name, value in new.items():
        _check_number(name, value)
    for limit in new.get("io", ()):
        for name in _RATES:
            _check_number(name, getattr(limit, name))
    return msgspec.structs.replace(limits, **new)


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int | float):
        return
    # v1 takes -1 for "no limit", and JSON has no infinity to store.
    lowest = 0 if name == "memory_swap" else 1
    if not math.isfinite(value) or not (lowest <= value <= _LARGEST or name == "cpu_max"):
        raise NativertError(
            f"bad limit: {name}: {value} is not from {lowest} to {_LARGEST}", code=Code.USAGE
        )


def _changed_io(before: Iterable[IoLimit], change: Iterable[Any]) -> tuple[IoLimit, ...]:
    by_device = {limit.device: limit for limit in before}
    for entry in change:
        fields = dict(entry) if isinstance(entry, Mapping) else msgspec.structs.asdict(entry)
        device = device_number(fields.pop("device"))
        limit = by_device.get(device, IoLimit(device))
        by_device[device] = msgspec.structs.replace(limit, **fields)
    # An entry in which nothing is left is no limit any more.
    return tuple(limit for limit in by_device.values() if limit != IoLimit(limit.device))


def encode(limits: Limits) -> str:
    """Return *limits* as the store keeps them."""
    return msgspec.json.encode(limits).decode()


def decode(text: str | None) -> Limits | None:
    """Return what `encode` wrote."""
    return None if text is None else msgspec.json.decode(text.encode(), type=known(Limits))
