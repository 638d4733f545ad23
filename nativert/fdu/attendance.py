"""The parts of `native` that somebody must be there for: restart, health, autostart, migration."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from nativert.fdu import syntax
from nativert.fdu.decoding import Part
from nativert.fdu.quantity import FieldError, parse_duration, parse_signal, show

Duration = Annotated[float | str, Meta(description="seconds, or spans such as 1m30s")]
PortNumber = Annotated[int, Meta(ge=1, le=65535)]
MAX_INTERVAL_S: Final = 86400
MAX_SOCKET_PATH: Final = 107
_LEAST_S: Final = 0.05


def _within(value: float | str, field: str, least_s: float = _LEAST_S) -> float:
    seconds = parse_duration(value, field)
    if not least_s <= seconds <= MAX_INTERVAL_S:
        expected = f"from {least_s:g} to {MAX_INTERVAL_S} s"
        raise FieldError(field, f"cannot be {show(value)}: expected {expected}")
    return seconds


class Restart(Part, frozen=True):
    """Whether the application is started again when it has ended by itself."""

    policy: Literal["never", "on-failure", "always"] = "never"
    max: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    backoff: Duration = "1s"
    backoff_max: Duration = "5m"
    reset: Duration = "10m"

    @property
    def backoff_s(self) -> float:
        """Seconds before the first attempt; each one after it waits twice as long."""
        return _within(self.backoff, "backoff")

    @property
    def backoff_max_s(self) -> float:
        """The longest wait."""
        return _within(self.backoff_max, "backoff_max")

    @property
    def reset_s(self) -> float:
        """Seconds of health after which the ends before are forgotten."""
        return _within(self.reset, "reset")

    def __post_init__(self) -> None:
        if self.backoff_s > self.backoff_max_s:
            raise FieldError("backoff", f"cannot be more than backoff_max {self.backoff_max}")
        _within(self.reset, "reset")


class Http(Part, frozen=True):
    """A GET that must be answered with a status from 200 to 399."""

    port: PortNumber
    path: str = "/"

    def __post_init__(self) -> None:
        syntax.check("^/[!-~]{0,2047}$", self.path, "path", "/ and printable ASCII without blanks")


class Health(Part, frozen=True):
    """One check from inside: a program that exits with 0, a port that accepts, or a GET."""

    exec: tuple[str, ...] = ()
    tcp: PortNumber | None = None
    http: Http | None = None
    start_period: Duration = 0
    interval: Duration = "30s"
    timeout: Duration = "5s"
    retries: Annotated[int, Meta(ge=1, le=1000)] = 3

    @property
    def start_period_s(self) -> float:
        """Seconds after the start in which a failure does not count."""
        return _within(self.start_period, "start_period", 0)

    @property
    def interval_s(self) -> float:
        """Seconds between the end of one check and the next."""
        return _within(self.interval, "interval")

    @property
    def timeout_s(self) -> float:
        """Seconds after which a check has failed."""
        return _within(self.timeout, "timeout")

    def __post_init__(self) -> None:
        for index, argument in enumerate(self.exec):
            syntax.check_argument(argument, f"exec[{index}]")
        given = [bool(self.exec), self.tcp is not None, self.http is not None].count(True)
        if given != 1:
            raise FieldError("health", "cannot be checked: expected one of exec, tcp, http")
        _within(self.start_period, "start_period", 0)
        _within(self.interval, "interval")
        _within(self.timeout, "timeout")


class Migration(Part, frozen=True):
    """How the application is told that it is to go on at another node, before it is stopped."""

    exec: tuple[str, ...] = ()
    signal: str | Annotated[int, Meta(ge=1, le=64)] | None = None
    socket: str = ""
    timeout: Duration = "30s"

    @property
    def signal_number(self) -> int | None:
        """The signal's number on this machine, None where there is none."""
        return None if self.signal is None else parse_signal(self.signal, "signal")

    @property
    def timeout_s(self) -> float:
        """Seconds that it has to get ready."""
        return _within(self.timeout, "timeout")

    def __post_init__(self) -> None:
        for index, argument in enumerate(self.exec):
            syntax.check_argument(argument, f"exec[{index}]")
        if [bool(self.exec), self.signal is not None, bool(self.socket)].count(True) != 1:
            raise FieldError("migration", "cannot be told: expected one of exec, signal, socket")
        if self.socket:
            syntax.check_path(self.socket, "socket")
            # unix(7): sun_path has 108 bytes, one of them for NUL.
            if len(self.socket.encode()) > MAX_SOCKET_PATH:
                raise FieldError("socket", f"is longer than {MAX_SOCKET_PATH} bytes")
        if self.signal is not None:
            parse_signal(self.signal, "signal")
        _within(self.timeout, "timeout")
