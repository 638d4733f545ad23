"""The spelling of names, paths and addresses; every check raises `FieldError`."""

from __future__ import annotations

import re
from typing import Final

from nativert.fdu.quantity import MAX_ARGUMENT, FieldError, show

NAME_PATTERN: Final = "^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$"
UUID_PATTERN: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
INTERFACE_PATTERN: Final = "^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}$"
MAC_PATTERN: Final = "^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$"
USER_PATTERN: Final = "^[a-zA-Z_][a-zA-Z0-9_.-]{0,31}$"
HOSTNAME_PATTERN: Final = "^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?$"
UMASK_PATTERN: Final = "^[0-7]{3,4}$"
DEVICE_PATTERN: Final = "^([0-9]{1,4}:[0-9]{1,7}|/dev/[^\\s]{1,250})$"

MAX_PATH: Final = 4095  # PATH_MAX without its NUL
_OURS: Final = ("/proc", "/sys", "/dev")


def check(pattern: str, value: str, field: str, expected: str) -> None:
    """Refuse a value that does not match as a whole."""
    # Not re.match: there `$` accepts a newline after the end.
    if not re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value):
        raise FieldError(field, f"cannot be {show(value)}: expected {expected}")


def check_name(value: str, field: str) -> None:
    """Refuse an id or name that could be taken for a path, an option or a pattern."""
    check(NAME_PATTERN, value, field, "1 to 64 of a-z A-Z 0-9 _ . - starting with letter or digit")


def check_uuid(value: str, field: str) -> None:
    """Refuse what is neither a UUID nor empty, which fog05 takes for absent."""
    if value:
        check(UUID_PATTERN, value, field, "a UUID such as uuidgen(1) prints")


def check_argument(value: str, field: str) -> None:
    """Refuse what execve(2) cannot pass on."""
    if "\0" in value:
        raise FieldError(field, f"cannot be {show(value)}: expected text without NUL")
    if len(value.encode()) > MAX_ARGUMENT:
        raise FieldError(field, f"is longer than {MAX_ARGUMENT} bytes")


def check_path(value: str, field: str) -> None:
    """Refuse a path that is relative, not normalised, too long or not printable."""
    parts = value.split("/")[1:]
    normal = value == "/" or all(part not in {"", ".", ".."} for part in parts)
    if not value.startswith("/") or not normal:
        expected = "an absolute path without `.`, `..`, `//` and a slash at its end"
        raise FieldError(field, f"cannot be {show(value)}: expected {expected}")
    # A newline in a path breaks every reader of mountinfo.
    if any(character < " " or character == "\x7f" for character in value):
        raise FieldError(field, f"cannot be {show(value)}: expected no control characters")
    if len(value.encode()) > MAX_PATH or any(len(part.encode()) > 255 for part in parts):
        raise FieldError(field, "is too long for a path")


def check_target(value: str, field: str) -> None:
    """Refuse a mount point that would cover what the runtime itself mounts."""
    check_path(value, field)
    if value == "/" or any(value == own or value.startswith(f"{own}/") for own in _OURS):
        expected = "neither / nor a path in /proc, /sys or /dev"
        raise FieldError(field, f"cannot be {show(value)}: expected {expected}")


def check_address(value: str, field: str) -> None:
    """Refuse what is not a dotted IPv4 address."""
    parts = value.split(".")
    if len(parts) != 4 or not all(
        re.fullmatch("0|[1-9][0-9]{0,2}", part) and int(part) <= 255 for part in parts
    ):
        raise FieldError(field, f"cannot be {show(value)}: expected an IPv4 address")


def check_mac(value: str, field: str) -> None:
    """Refuse what is not the Ethernet address of one station."""
    check(MAC_PATTERN, value, field, "an address such as 02:00:00:00:00:01")
    octets = bytes.fromhex(value.replace(":", ""))
    if octets[0] & 1 or not any(octets):
        raise FieldError(field, f"cannot be {show(value)}: expected a unicast address")


def check_distinct(values: list[str], field: str) -> None:
    """Refuse a value that stands in a list twice; `field` names the list."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            raise FieldError(f"{field}[{index}]", f"cannot be {show(value)}: it is given twice")
        seen.add(value)
