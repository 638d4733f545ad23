"""The `native` object: what a native process needs and fog05 has no field for.

Fields keep what was written; the properties beside them give the parsed values.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from nativert.fdu import syntax
from nativert.fdu.attendance import Health, Migration, Restart
from nativert.fdu.decoding import Part
from nativert.fdu.quantity import (
    FieldError,
    check_variable,
    parse_duration,
    parse_signal,
    parse_size,
    show,
)
from nativert.fdu.resources import (
    Cpu,
    IoRequest,
    Memory,
    Pids,
    Rlimits,
    Size,
    at_least_a_page,
)

MAX_GRACE_S: Final = 3600
MAX_ENTRIES: Final = 256  # of each list of mounts, ports and devices


def _parse_grace(value: float | str) -> float:
    seconds = parse_duration(value, "grace")
    if seconds > MAX_GRACE_S:
        raise FieldError("grace", f"cannot be {show(value)}: expected at most {MAX_GRACE_S} s")
    return seconds


def _parse_port(text: str, field: str) -> Port:
    expected = "[IP:]HOST:INSTANCE[/tcp|/udp] with ports from 1 to 65535"
    spec, _, protocol = text.partition("/")
    host, _, rest = spec.rpartition(":")
    address, _, host_port = host.rpartition(":")
    numbers = [
        int(part) if part.isascii() and part.isdigit() and len(part) <= 5 else 0
        for part in (host_port, rest)
    ]
    known = "/" not in text or protocol in {"tcp", "udp"}
    if not known or not all(1 <= number <= 65535 for number in numbers) or host.startswith(":"):
        raise FieldError(field, f"cannot be {show(text)}: expected {expected}")
    if address:
        syntax.check_address(address, field)
    return Port(
        host_ip=None if address in {"", "0.0.0.0"} else address,  # noqa: S104 (means: all)
        host_port=numbers[0],
        instance_port=numbers[1],
        protocol=protocol or "tcp",
    )


class Mount(Part, frozen=True):
    """A file or directory of the host, shown inside."""

    source: str
    target: str
    read_only: bool = True

    def __post_init__(self) -> None:
        syntax.check_path(self.source, "source")
        syntax.check_target(self.target, "target")


class Tmpfs(Part, frozen=True):
    """An empty file system in memory; without a size the kernel's default (half of the memory)."""

    target: str
    size: Size | None = None

    @property
    def size_bytes(self) -> int | None:
        """The most that it holds."""
        return at_least_a_page(self.size, "size")

    def __post_init__(self) -> None:
        syntax.check_target(self.target, "target")
        at_least_a_page(self.size, "size")


class Port(msgspec.Struct, frozen=True):
    """A port of the host that leads to a port of the instance."""

    host_ip: str | None  # None: every address of the host
    host_port: int
    instance_port: int
    protocol: str


class Network(Part, frozen=True):
    """How much of a network the instance has, and what of it the host's network reaches."""

    mode: Literal["private", "host", "none"] = "private"
    ports: Annotated[tuple[str, ...], Meta(max_length=MAX_ENTRIES)] = ()

    def parsed_ports(self) -> tuple[Port, ...]:
        """The published ports; `[ip:]HOST:INSTANCE[/tcp|udp]` each."""
        return tuple(_parse_port(text, f"ports[{index}]") for index, text in enumerate(self.ports))

    def __post_init__(self) -> None:
        ports = self.parsed_ports()
        if ports and self.mode != "private":
            raise FieldError("ports", f"cannot be used with mode {self.mode}: expected private")
        for index, port in enumerate(ports):
            for other in ports[:index]:
                same = (port.host_port, port.protocol) == (other.host_port, other.protocol)
                if same and (
                    port.host_ip == other.host_ip or None in {port.host_ip, other.host_ip}
                ):
                    taken = f"{port.host_port}/{port.protocol}"
                    raise FieldError(f"ports[{index}]", f"cannot publish {taken} twice")


class Stop(Part, frozen=True):
    """How the application is asked to end, and for how long before it is killed."""

    signal: str | Annotated[int, Meta(ge=1, le=64)] = "SIGTERM"
    grace: Annotated[float | str, Meta(description="seconds, or spans such as 1m30s")] = "10s"

    @property
    def signal_number(self) -> int:
        """The signal's number on this machine."""
        return parse_signal(self.signal, "signal")

    @property
    def grace_s(self) -> float:
        """Seconds between the signal and the kill."""
        return _parse_grace(self.grace)

    def __post_init__(self) -> None:
        parse_signal(self.signal, "signal")
        _parse_grace(self.grace)


class Logs(Part, frozen=True):
    """How much of the application's output is kept."""

    max_size: Size = "10M"
    files: Annotated[int, Meta(ge=1, le=100)] = 5

    @property
    def max_bytes(self) -> int:
        """The size at which a file is rotated."""
        return parse_size(self.max_size, "max_size")

    def __post_init__(self) -> None:
        at_least_a_page(self.max_size, "max_size")


class Native(Part, frozen=True, omit_defaults=True):
    """Everything is optional; what is absent has the default that is written here."""

    REFUSED: ClassVar = {
        "devices": "an instance has no devices of the host",
        "secrets": "use a mount of a file that only the application may read",
    }

    env: dict[str, str] = msgspec.field(default_factory=dict)
    user: (
        Annotated[int, Meta(ge=0, le=65535)]
        | Annotated[str, Meta(extra_json_schema={"pattern": syntax.USER_PATTERN})]
    ) = 1000
    workdir: str = "/data"
    rootfs: Literal["host", "image"] = "host"
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    pids: Pids = Pids()
    io: Annotated[tuple[IoRequest, ...], Meta(max_length=MAX_ENTRIES)] = ()
    mounts: Annotated[tuple[Mount, ...], Meta(max_length=MAX_ENTRIES)] = ()
    tmpfs: Annotated[tuple[str | Tmpfs, ...], Meta(max_length=MAX_ENTRIES)] = ()
    network: Network = Network()
    stop: Stop = Stop()
    logs: Logs = Logs()
    restart: Restart = Restart()
    health: Health | None = None
    autostart: bool = False
    migration: Migration | None = None
    rlimits: Rlimits = Rlimits()
    umask: Annotated[str, Meta(extra_json_schema={"pattern": syntax.UMASK_PATTERN})] = "0022"
    hostname: (
        Annotated[str, Meta(extra_json_schema={"pattern": syntax.HOSTNAME_PATTERN})] | None
    ) = None
    # -1000 would exempt the application from the kill that enforces its memory limit.
    oom_score_adj: Annotated[int, Meta(ge=-999, le=1000)] | None = None

    @property
    def umask_bits(self) -> int:
        """The mask for umask(2)."""
        return int(self.umask, 8)

    def ports(self) -> tuple[Port, ...]:
        """The published ports."""
        return self.network.parsed_ports()

    def tmpfs_mounts(self) -> tuple[Tmpfs, ...]:
        """The empty file systems, each with its target."""
        return tuple(
            Tmpfs(target=entry) if isinstance(entry, str) else entry for entry in self.tmpfs
        )

    def __post_init__(self) -> None:
        for name, value in self.env.items():
            check_variable(name, value, "env")
        if isinstance(self.user, str):
            expected = "a uid, or a name of at most 32 letters, digits, _ . -"
            syntax.check(syntax.USER_PATTERN, self.user, "user", expected)
        syntax.check_path(self.workdir, "workdir")
        syntax.check(syntax.UMASK_PATTERN, self.umask, "umask", "3 or 4 octal digits")
        if self.hostname is not None:
            expected = "at most 64 letters, digits, - and ."
            syntax.check(syntax.HOSTNAME_PATTERN, self.hostname, "hostname", expected)
        for index, entry in enumerate(self.tmpfs):
            if isinstance(entry, str):
                syntax.check_target(entry, f"tmpfs[{index}]")
        syntax.check_distinct([entry.device for entry in self.io], "io")
        targets = [mount.target for mount in self.mounts]
        syntax.check_distinct(targets, "mounts")
        empty = [entry.target for entry in self.tmpfs_mounts()]
        syntax.check_distinct(empty, "tmpfs")
        for index, target in enumerate(empty):
            if target in targets:
                raise FieldError(f"tmpfs[{index}]", f"cannot be {target}: a mount has this target")
