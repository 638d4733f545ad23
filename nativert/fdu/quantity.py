"""Sizes, durations, cpu lists, signals and variables, as people write them.

Every function takes the path of the field that it reads and raises `FieldError` with that path.
"""

from __future__ import annotations

import re
import signal
from typing import Final

from nativert.errors import DescriptorError

MAX_SIZE_BYTES: Final = 2**63 - 1  # what the kernel's interface files hold (loff_t, s64)
MAX_DURATION_S: Final = 366 * 86400
MAX_ARGUMENT: Final = 131071  # MAX_ARG_STRLEN without its NUL; see execve(2)
MAX_CPU: Final = 8191  # NR_CPUS is at most 8192

_SIZE: Final = re.compile(r"([0-9]{1,19})(\.[0-9]{1,9})?(?:([KkMmGgTt])(?:i|iB)?|B)?")
_POWER: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_NUMBER: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_SPAN: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
_UNIT_S: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_CPU_RANGE: Final = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_REALTIME: Final = re.compile(r"RTMIN\+([0-9]{1,2})")


class FieldError(DescriptorError, ValueError):
    """A field that is not acceptable.

    Also a ValueError, because msgspec adds the path of the surrounding object to those only.
    """


def show(value: object) -> str:
    """The value for an error: one line, printable ASCII, cut when long."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_size(value: object, field: str = "size") -> int:
    """Bytes from `64M`, `64MiB`, `1.5G` or a number; K, M, G, T are powers of 1024."""
    expected = "a number of bytes, or one with K, M, G or T (powers of 1024), such as 64M"
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise FieldError(field, f"cannot be {show(value)}: expected {expected}")
        whole, fraction, letter = match.groups(default="")
        shift = _POWER[letter.lower()]
        size = int(whole) << shift
        if fraction:
            if not shift:
                raise FieldError(field, f"cannot be {show(value)}: a byte has no fractions")
            # In integers, because a float has lost the last bytes of a large size.
            size += (int(fraction[1:]) << shift) // 10 ** len(fraction[1:])
    if not 0 <= size <= MAX_SIZE_BYTES:
        raise FieldError(field, f"cannot be {show(value)}: expected 0 to {MAX_SIZE_BYTES} bytes")
    return size


def parse_duration(value: object, field: str = "duration") -> float:
    """Seconds from `500ms`, `10s`, `1m30s`, `2h` or a number of seconds."""
    expected = "a number of seconds, or spans of d, h, m, s, ms such as 1m30s"
    seconds: float
    if isinstance(value, bool):
        raise FieldError(field, f"cannot be {show(value)}: expected {expected}")
    if isinstance(value, (int, float)):
        seconds = value
    elif isinstance(value, str) and _NUMBER.fullmatch(value):
        seconds = float(value)
    else:
        spans = _SPAN.findall(value) if isinstance(value, str) else []
        if not spans or "".join(map("".join, spans)) != value:
            raise FieldError(field, f"cannot be {show(value)}: expected {expected}")
        seconds = sum(float(number) * _UNIT_S[unit] for number, unit in spans)
    # Written so that NaN, which compares false with everything, is refused too.
    if not 0 <= seconds <= MAX_DURATION_S:
        raise FieldError(field, f"cannot be {show(value)}: expected 0 to {MAX_DURATION_S} seconds")
    return float(seconds)


def parse_cpuset(value: object, field: str = "cpuset") -> frozenset[int]:
    """Processor numbers from a list such as `0-3,5`; see "List format" in cpuset(7)."""
    cpus: set[int] = set()
    for part in value.split(",") if isinstance(value, str) else [""]:
        match = _CPU_RANGE.fullmatch(part)
        first = int(match[1]) if match else 1
        last = int(match[2] or match[1]) if match else 0
        if not first <= last <= MAX_CPU:
            expected = f"processors from 0 to {MAX_CPU}, such as 0-3,5"
            raise FieldError(field, f"cannot be {show(value)}: expected {expected}")
        cpus.update(range(first, last + 1))
    return frozenset(cpus)


def parse_signal(value: object, field: str = "signal") -> int:
    """The number of `SIGTERM`, `TERM`, `RTMIN+3` or `15`; see signal(7)."""
    number = 0
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str):
        name = value.upper().removeprefix("SIG")
        realtime = _REALTIME.fullmatch(name)
        if realtime:
            number = signal.SIGRTMIN + int(realtime[1])
        elif re.fullmatch(r"[0-9]{1,3}", name):
            number = int(name)
        else:
            number = signal.Signals.__members__.get(f"SIG{name}", 0)
    if not 1 <= number <= signal.SIGRTMAX:
        expected = f"a name such as SIGTERM, or 1 to {signal.SIGRTMAX}"
        raise FieldError(field, f"cannot be {show(value)}: expected {expected}")
    return int(number)


def parse_env(value: str, field: str = "env") -> tuple[str, str]:
    """Name and value from `NAME=VALUE`; only the first `=` divides."""
    name, separator, text = value.partition("=")
    if not separator:
        raise FieldError(field, f"cannot be {show(value)}: expected NAME=VALUE")
    check_variable(name, text, field)
    return name, text


def check_variable(name: str, value: str, field: str) -> None:
    """Refuse what environ(7) cannot hold. Newlines: in a value yes, in a name no."""
    if not name or any(character in name for character in "=\0\n\r"):
        expected = "a name without `=`, NUL and newline"
        raise FieldError(field, f"name cannot be {show(name)}: expected {expected}")
    if "\0" in value:
        raise FieldError(field, f"cannot be {show(value)}: expected a value without NUL")
    # A command line may bring bytes that are not UTF-8; a record cannot carry them.
    if not _encodable(name) or not _encodable(value):
        raise FieldError(field, f"cannot be {show(value)}: expected UTF-8")
    if len(f"{name}={value}".encode()) > MAX_ARGUMENT:
        raise FieldError(field, f"{show(name)} is longer than {MAX_ARGUMENT} bytes")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
