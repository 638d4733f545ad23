"""Limits of an instance: processor, memory, processes, block devices, setrlimit(2).

Fields keep what was written; the properties beside them give the parsed values.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from nativert.fdu import syntax
from nativert.fdu.decoding import Part
from nativert.fdu.quantity import FieldError, parse_cpuset, parse_size, show

Size = Annotated[int | str, Meta(description="bytes, or a number with K, M, G or T (1024)")]
Rate = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Limit = Annotated[int, Meta(ge=0, le=2**63 - 1)] | Literal["unlimited"]

PAGE_BYTES: Final = 4096
UNLIMITED: Final = -1  # RLIM_INFINITY, as the resource module spells it


class Cpu(Part, frozen=True):
    """Processor time and placement."""

    max: Annotated[float, Meta(ge=0.01, le=8192, description="cores")] | None = None
    weight: Annotated[int, Meta(ge=1, le=10000)] | None = None
    cpuset: str | None = None

    def __post_init__(self) -> None:
        if self.cpuset is not None:
            parse_cpuset(self.cpuset, "cpuset")


class Memory(Part, frozen=True):
    """Memory limits; `swap` comes on top of `max`."""

    max: Size | None = None
    high: Size | None = None
    swap: Size | None = None

    @property
    def max_bytes(self) -> int | None:
        """Above this the application is killed."""
        return at_least_a_page(self.max, "max")

    @property
    def high_bytes(self) -> int | None:
        """Above this the application is slowed down and its memory reclaimed."""
        return at_least_a_page(self.high, "high")

    @property
    def swap_bytes(self) -> int | None:
        """Swap space on top of memory."""
        return None if self.swap is None else parse_size(self.swap, "swap")

    def __post_init__(self) -> None:
        for field in ("max", "high"):
            at_least_a_page(getattr(self, field), field)
        if self.swap is not None:
            parse_size(self.swap, "swap")


class Pids(Part, frozen=True):
    """The number of processes and threads."""

    max: Annotated[int, Meta(ge=1, le=4194304)] | None = None


class IoRequest(Part, frozen=True):
    """Bytes and operations a second on one block device."""

    device: Annotated[str, Meta(extra_json_schema={"pattern": syntax.DEVICE_PATTERN})]
    rbps: Size | None = None
    wbps: Size | None = None
    riops: Rate | None = None
    wiops: Rate | None = None

    @property
    def rbps_bytes(self) -> int | None:
        """Bytes read a second."""
        return _positive(self.rbps, "rbps")

    @property
    def wbps_bytes(self) -> int | None:
        """Bytes written a second."""
        return _positive(self.wbps, "wbps")

    def __post_init__(self) -> None:
        expected = "a path in /dev, or MAJOR:MINOR"
        syntax.check(syntax.DEVICE_PATTERN, self.device, "device", expected)
        if self.device.startswith("/"):
            syntax.check_path(self.device, "device")
        for field in ("rbps", "wbps"):
            _positive(getattr(self, field), field)
        if {self.rbps, self.wbps, self.riops, self.wiops} == {None}:
            raise FieldError("", "sets no limit: expected one of rbps, wbps, riops, wiops")


class SoftHard(Part, frozen=True):
    """Both values of a resource limit."""

    soft: Limit
    hard: Limit

    def __post_init__(self) -> None:
        soft, hard = _limit(self.soft), _limit(self.hard)
        if hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
            raise FieldError("soft", f"cannot be {self.soft}: expected at most hard, {self.hard}")


class Rlimits(Part, frozen=True):
    """Resource limits in the units of getrlimit(2); a single number sets soft and hard."""

    REFUSED: ClassVar = {
        "locks": "the kernel has not used it since 2.4.25",
        "rss": "the kernel has not used it since 2.4.30; see native.memory",
    }

    as_: Limit | SoftHard | None = msgspec.field(default=None, name="as")
    core: Limit | SoftHard | None = None
    cpu: Limit | SoftHard | None = None
    data: Limit | SoftHard | None = None
    fsize: Limit | SoftHard | None = None
    memlock: Limit | SoftHard | None = None
    msgqueue: Limit | SoftHard | None = None
    nice: Limit | SoftHard | None = None
    nofile: Limit | SoftHard | None = None
    nproc: Limit | SoftHard | None = None
    rtprio: Limit | SoftHard | None = None
    rttime: Limit | SoftHard | None = None
    sigpending: Limit | SoftHard | None = None
    stack: Limit | SoftHard | None = None

    def limits(self) -> tuple[tuple[str, int, int], ...]:
        """(name, soft, hard) of each limit that is set; `UNLIMITED` is -1."""
        result = []
        # Not msgspec.structs.fields(), which evaluates every annotation: 0.7 ms.
        names = zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True)
        for attribute, name in names:
            value = getattr(self, attribute)
            if isinstance(value, SoftHard):
                result.append((name, _limit(value.soft), _limit(value.hard)))
            elif value is not None:
                result.append((name, _limit(value), _limit(value)))
        return tuple(result)


def at_least_a_page(value: int | str | None, field: str) -> int | None:
    """Bytes of a limit on memory or a file; raises `FieldError` under one page."""
    size = None if value is None else parse_size(value, field)
    if size is not None and size < PAGE_BYTES:
        raise FieldError(field, f"cannot be {show(value)}: expected at least {PAGE_BYTES} bytes")
    return size


def _positive(value: int | str | None, field: str) -> int | None:
    size = None if value is None else parse_size(value, field)
    if size == 0:
        raise FieldError(field, f"cannot be {show(value)}: expected more than 0")
    return size


def _limit(value: int | str) -> int:
    return UNLIMITED if isinstance(value, str) else value
