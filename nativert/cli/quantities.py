"""Option types: the quantities of descriptors, refused as wrong usage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from nativert.errors import DescriptorError

UNSET = "max"


class Quantity(click.ParamType):  # type: ignore[type-arg] # generic since click 8.5 only
    """A value read by one function of `fdu.quantity`, which refuses by DescriptorError."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def get_metavar(self, *_: object, **__: object) -> str:
        """Return the name as it is: click would write MAX, which is not accepted."""
        return self.name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Parse what came from the command line; click's BadParameter."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except DescriptorError as e:
            self.fail(e.reason, param, ctx)


def size(value: str) -> int:
    """Read a size in bytes."""
    from nativert.fdu.quantity import parse_size

    return parse_size(value)


def duration(value: str) -> float:
    """Read a duration in seconds."""
    from nativert.fdu.quantity import parse_duration

    return parse_duration(value)


def signal_number(value: str) -> int:
    """Read a signal by name or number."""
    from nativert.fdu.quantity import parse_signal

    return parse_signal(value)


def cpu_list(value: str) -> str:
    """Read a list of CPUs and return it as written; see cpuset(7), List format."""
    from nativert.fdu.quantity import parse_cpuset

    parse_cpuset(value)
    return value


def variable(value: str) -> tuple[str, str]:
    """Read K=V."""
    from nativert.fdu.quantity import parse_env

    return parse_env(value)


def cpu_count(value: str) -> float:
    """Read a number of cores above 0."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise DescriptorError("cpu", f"{value!r} is not a number of cores above 0, such as 0.5")
    return number


def task_count(value: str) -> int:
    """Read a number of tasks, at least 1."""
    if not value.isdecimal() or int(value) < 1:
        raise DescriptorError("pids", f"{value!r} is not a whole number above 0")
    return int(value)


_IO_KEYS: Mapping[str, Callable[[str], int]] = {
    "rbps": size,
    "wbps": size,
    "riops": task_count,
    "wiops": task_count,
}


def io_limit(value: str) -> Mapping[str, object]:
    """Read DEVICE:KEY=VALUE[,KEY=VALUE...] into the keys that are named; None unsets one."""
    # From the right: DEVICE may be MAJ:MIN or a by-path link, both with colons.
    device, _, settings = value.rpartition(":")
    if not device:
        raise DescriptorError("io", f"{value!r} is not DEVICE:KEY=VALUE[,KEY=VALUE...]")
    limit: dict[str, object] = {"device": device}
    for setting in settings.split(","):
        key, _, text = setting.partition("=")
        if key not in _IO_KEYS or not text:
            accepted = ", ".join(_IO_KEYS)
            raise DescriptorError("io", f"{setting!r} is not KEY=VALUE with KEY one of {accepted}")
        limit[key] = or_unset(_IO_KEYS[key])(text)
    return limit


def or_unset(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Read what *parse* reads, or `max`, which stands for no limit."""
    return lambda value: UNSET if value == UNSET else parse(value)


SIZE_OR_MAX = Quantity("SIZE|max", or_unset(size))
CORES_OR_MAX = Quantity("CORES|max", or_unset(cpu_count))
TASKS_OR_MAX = Quantity("N|max", or_unset(task_count))
CPUS_OR_MAX = Quantity("LIST|max", or_unset(cpu_list))
IO_LIMIT = Quantity("DEVICE:KEY=VALUE,...", io_limit)
DURATION = Quantity("DURATION", duration)
SIGNAL = Quantity("SIGNAL", signal_number)
VARIABLE = Quantity("K=V", variable)

env_option = click.option(
    "--env", type=VARIABLE, multiple=True, help="Set a variable of the application; repeatable."
)
