"""The agent's configuration file: TOML, strict; a key that is not known is refused with its path.

Everything has a default, so an absent file is an empty one. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from nativert.errors import Code, DescriptorError, NativertError
from nativert.fdu.decoding import Part, build
from nativert.plugin.zenoh_credentials import CLIENT, NODE, PLUGIN

_READ_LIMIT = 1 << 20
_MIN_REQUESTS = 16
_MIN_BODY_BYTES = 4096
_PARTS = "conf.d"
_WITH_TLS = ("tls/", "quic/")


class Tcp(Part, frozen=True, kw_only=True):
    """Serving on a TCP port too; without TLS on loopback only."""

    address: str
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None

    def __post_init__(self) -> None:
        """Refuse half a TLS, and an address of the network without one."""
        tls = (self.certificate, self.key, self.client_ca)
        if any(tls) and not all(tls):
            raise DescriptorError(
                "api.tcp", "certificate, key and client_ca go together: all three, or none"
            )
        host, _ = self.endpoint
        if not self.tls and not ipaddress.ip_address(host).is_loopback:
            raise DescriptorError(
                "api.tcp.address",
                f"{self.address}: without TLS only a loopback address may be served",
                hint="give certificate, key and client_ca, or use 127.0.0.1",
            )

    @property
    def tls(self) -> bool:
        """Whether clients must show a certificate."""
        return self.client_ca is not None

    @property
    def endpoint(self) -> tuple[str, int]:
        """The IP address and the port."""
        host, _, port = self.address.rpartition(":")
        try:
            ipaddress.ip_address(host.strip("[]"))
            number = int(port)
        except ValueError:
            number = -1
        if not 0 <= number <= 65535:
            raise DescriptorError(
                "api.tcp.address", f"{self.address!r} is not IP:PORT, such as 127.0.0.1:8420"
            )
        return host.strip("[]"), number


class Api(Part, frozen=True, kw_only=True):
    """Who may ask, and how much at once."""

    # A group's name or number whose members may do what root may through the API.
    group: str | int | None = None
    max_requests: int = 2048
    max_streams: int = 512
    max_body_bytes: int = 1 << 20
    # For a request's head and body, and for a client that does not read what it asked for.
    client_timeout_s: float = 30.0
    tcp: Tcp | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that nothing fits into."""
        for name, least in (
            ("max_requests", _MIN_REQUESTS),
            ("max_streams", 1),
            ("max_body_bytes", _MIN_BODY_BYTES),
        ):
            if getattr(self, name) < least:
                raise DescriptorError(f"api.{name}", f"must be at least {least}")
        if self.client_timeout_s <= 0:
            raise DescriptorError("api.client_timeout_s", "must be more than 0")


class Monitor(Part, frozen=True, kw_only=True):
    """How often every running instance is measured."""

    interval_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what would keep a processor busy."""
        if not 0.1 <= self.interval_s <= 3600:
            raise DescriptorError("monitor.interval_s", "must be between 0.1 and 3600")


class Supervision(Part, frozen=True, kw_only=True):
    """How often what the kernel has is held against the records."""

    reconcile_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what would keep a processor busy."""
        if not 0.1 <= self.reconcile_s <= 3600:
            raise DescriptorError("supervision.reconcile_s", "must be between 0.1 and 3600")


class Plugins(Part, frozen=True, kw_only=True):
    """Which runtime plugins are loaded beside the native one."""

    # Where their manifests are, as fog05 has them; etc/nativert/plugins unless told.
    directory: str | None = None


def _is_loopback(endpoint: str) -> bool:
    """Tell whether an endpoint as tcp/127.0.0.1:7447 is reached from this host only."""
    host = endpoint.partition("/")[2].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ZenohTls(Part, frozen=True, kw_only=True):
    """Everybody shows a certificate of one authority, and may do what its common name may.

    With `users`, a file with a line `USER:PASSWORD` for each, clients and plugins log in instead.
    Paths are relative to the directory of config.toml.
    """

    ca: str
    certificate: str
    key: str
    users: str | None = None


class ZenohAccess(Part, frozen=True, kw_only=True):
    """The common names, or users, of those who may do what nodes, clients and plugins do."""

    nodes: tuple[str, ...] = (NODE,)
    clients: tuple[str, ...] = (CLIENT,)
    plugins: tuple[str, ...] = (PLUGIN,)


class Zenoh(Part, frozen=True, kw_only=True):
    """Other nodes, and clients of fog05; endpoints as tcp/127.0.0.1:7447."""

    listen: tuple[str, ...] = ("tcp/127.0.0.1:7447",)
    connect: tuple[str, ...] = ()
    tls: ZenohTls | None = None
    access: ZenohAccess = ZenohAccess()
    # The interface on which other nodes are looked for; "auto" is all of them, "" none.
    scouting: str = ""
    # Whether to listen on the network without TLS: who reaches it may do what root may.
    insecure: bool = False
    status_interval_s: float = 10.0
    # More keys of Zenoh's own configuration, such as "transport/link/tls".
    options: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a listener for everybody, and what means nothing or keeps a processor busy."""
        if not 0.1 <= self.status_interval_s <= 3600:
            raise DescriptorError("zenoh.status_interval_s", "must be between 0.1 and 3600")
        if self.tls is None and self.access != ZenohAccess():
            raise DescriptorError("zenoh.access", "says who may do what: that needs zenoh.tls")
        for name, endpoints in (("listen", self.listen), ("connect", self.connect)):
            for endpoint in endpoints:
                self._check(name, endpoint)

    def _check(self, name: str, endpoint: str) -> None:
        encrypted = endpoint.startswith(_WITH_TLS)
        if self.tls is not None and not encrypted:
            raise DescriptorError(
                f"zenoh.{name}",
                f"{endpoint}: with zenoh.tls there is no endpoint without TLS",
                hint=f"write tls/{endpoint.partition('/')[2]}",
            )
        if name == "connect" or self.insecure or _is_loopback(endpoint):
            return
        if self.tls is None:
            raise DescriptorError(
                "zenoh.listen",
                f"{endpoint}: without zenoh.tls only a loopback address may be listened on",
                hint="`nativert zenoh init` makes keys and configuration; --insecure, or "
                "insecure = true, lets everybody in who reaches it",
            )


class Overlay(Part, frozen=True, kw_only=True):
    """How this node's instances are joined with those of the other nodes of [zenoh]."""

    # Frames show neither password nor certificate: with zenoh.tls only where it is asked for.
    enabled: bool | None = None
    # Where tunnels of other nodes end; as zenoh.listen says, unless told.
    address: str | None = None
    # All nodes that are joined have the same two.
    vni: int = 7447
    port: int = 4789

    def __post_init__(self) -> None:
        """Refuse what VXLAN has no room for, and what other hosts cannot reach."""
        if not 1 <= self.vni < 1 << 24:
            raise DescriptorError("overlay.vni", "must be between 1 and 16777215")
        if not 1 <= self.port <= 65535:
            raise DescriptorError("overlay.port", "must be between 1 and 65535")
        if self.address is None:
            return
        try:
            address = ipaddress.IPv4Address(self.address)
        except ValueError:
            address = ipaddress.IPv4Address(0)
        if address.is_unspecified or address.is_loopback or address.is_multicast:
            raise DescriptorError(
                "overlay.address", f"{self.address!r} is no IPv4 address that other hosts reach"
            )


class Config(Part, frozen=True, kw_only=True):
    """The whole file."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    # Whether SIGTERM ends the instances too. They go on otherwise.
    stop_all: bool = False
    api: Api = Api()
    monitor: Monitor = Monitor()
    supervision: Supervision = Supervision()
    plugins: Plugins = Plugins()
    zenoh: Zenoh | None = None
    overlay: Overlay = Overlay()


def parse(data: bytes, *, source: str) -> Config:
    """Return the configuration in *data*; NativertError(DESCRIPTOR) names file and key."""
    return _built(_tree(data, source), source)


def read(path: Path, *, needed: bool, insecure: bool = False) -> Config:
    """Return the configuration in *path*, the default one if it is absent and not *needed*.

    A file of the directory `conf.d` beside it adds tables that no other file has. *insecure* is
    the same as `zenoh.insecure`.
    """
    tree: dict[str, Any] = {}
    parts = sorted(path.with_name(_PARTS).glob("*.toml"))
    for source in (path, *parts):
        data = _data(source, needed=needed or source is not path)
        for name, value in _tree(data, str(source)).items():
            if name in tree:
                raise NativertError(
                    f"{source}: {name} is in another file already",
                    code=Code.DESCRIPTOR,
                    hint=f"see {path} and {path.with_name(_PARTS)}",
                )
            tree[name] = value
    if insecure and isinstance(tree.get("zenoh"), dict):
        tree["zenoh"]["insecure"] = True
    return _placed(_built(tree, str(path) if not parts else f"{path}, {_PARTS}"), path.parent)


def _placed(config: Config, directory: Path) -> Config:
    if config.zenoh is None or config.zenoh.tls is None:
        return config
    paths = {
        name: str(directory.absolute() / value)
        for name, value in msgspec.structs.asdict(config.zenoh.tls).items()
        if value is not None
    }
    tls = ZenohTls(**paths)
    return msgspec.structs.replace(config, zenoh=msgspec.structs.replace(config.zenoh, tls=tls))


def _data(path: Path, *, needed: bool) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_READ_LIMIT)
    except FileNotFoundError:
        if needed:
            raise NativertError(f"{path}: no such file", code=Code.DESCRIPTOR) from None
        return b""
    except OSError as e:
        raise NativertError(f"{path}: {e.strerror}", code=Code.DESCRIPTOR) from None


def _tree(data: bytes, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise NativertError(f"{source}: {e}", code=Code.DESCRIPTOR) from None


def _built(tree: dict[str, Any], source: str) -> Config:
    try:
        return build(tree, Config)
    except DescriptorError as e:
        raise NativertError(f"{source}: {e.message}", code=Code.DESCRIPTOR, hint=e.hint) from None
