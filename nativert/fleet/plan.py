"""What a fleet is made of, in a file that is there before anything else of it is."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Final

import msgspec

from nativert.errors import Code, NativertError
from nativert.store import files
from nativert.store.locks import Lock
from nativert.store.paths import Paths

DEFAULT_ROOT: Final = Path("/var/lib/nativert-fleet")
MOST: Final = 32
# For tests of networks (RFC 2544): nobody's address, and seen in the fleet's namespaces only.
SUBNET: Final = ipaddress.IPv4Network("198.18.0.0/24")
PORT: Final = 7447
_LOCK_S: Final = 120.0


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One node; `netns` is a name as ip-netns(8) has it, `link` its end of the wire."""

    name: str
    directory: str
    address: str
    netns: str
    link: str

    @property
    def root(self) -> Path:
        """What its commands have for --root."""
        return Path(self.directory)

    @property
    def paths(self) -> Paths:
        """Where the node keeps its things."""
        return Paths(self.root)

    @property
    def endpoint(self) -> str:
        """Where other nodes reach it."""
        return f"tcp/{self.address}:{PORT}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole fleet; every name of it on the host has the tag. `hub` is where the bridge is."""

    tag: str
    hub: str
    bridge: str
    nodes: list[Member]


def make(root: Path, count: int) -> Plan:
    """Return the plan of a new fleet below *root*."""
    tag = os.urandom(3).hex()
    nodes = [
        Member(
            name=f"node-{number}",
            directory=str(root / f"node-{number}"),
            address=str(SUBNET[number]),
            netns=f"nrf-{tag}-{number}",
            link=f"nf{tag}{number}",
        )
        for number in range(1, count + 1)
    ]
    return Plan(tag=tag, hub=f"nrf-{tag}-hub", bridge=f"nrf-{tag}", nodes=nodes)


def _path(root: Path) -> Path:
    return root / "fleet.json"


def there(root: Path) -> bool:
    """Tell whether there is a fleet, or the rest of one."""
    return _path(root).exists()


def save(root: Path, plan: Plan) -> None:
    """Write the plan: from now on `read` finds everything that may have been made."""
    data = msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"
    files.replace_durably(_path(root), data)


def read(root: Path) -> Plan:
    """Return the plan below *root*; NativertError NOT_FOUND, STORE."""
    try:
        return files.decode(_path(root), Plan)
    except (FileNotFoundError, NotADirectoryError):
        raise NativertError(
            f"{root}: no fleet is here",
            code=Code.NOT_FOUND,
            hint="nativert up makes one; --root names another directory",
        ) from None
    except files.DamagedError as e:
        raise NativertError(
            f"{_path(root)} is damaged: {e}",
            code=Code.STORE,
            hint="ip netns lists what is left as nrf-…",
        ) from None


def forget(root: Path) -> None:
    """Remove the plan, and the directory if it has nothing else."""
    _path(root).unlink(missing_ok=True)
    (root / "fleet.lock").unlink(missing_ok=True)
    try:
        root.rmdir()
    except OSError:
        pass  # Somebody keeps something else there.


def lock(root: Path) -> Lock:
    """The lock of who makes or removes the fleet."""
    return Lock(root / "fleet.lock", what=f"the fleet at {root}", timeout_s=_LOCK_S)
