"""What the operations of one node share: its store, cgroups, network, files and launcher."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING

from nativert.errors import Code, NativertError
from nativert.fdu import descriptor as descriptors
from nativert.fdu.descriptor import Descriptor
from nativert.isolation import cgroups
from nativert.isolation.cgroups import scope
from nativert.isolation.cgroups.driver import INIT, LAUNCHER, Cgroup, Driver
from nativert.launcher.client import Channel, LauncherClient
from nativert.launcher.protocol import INIT_SOCKET
from nativert.runtime.protocols import NetworkManager, Os
from nativert.store.claims import Claims
from nativert.store.durable import Store
from nativert.store.identity import Identity, claim_block, open_identity
from nativert.store.locks import InstanceLock, NodeLock
from nativert.store.paths import Paths

if TYPE_CHECKING:
    from nativert.runtime.image import Images


@functools.lru_cache(maxsize=256)
def descriptor_of(text: str, name: str) -> Descriptor:
    """Return the descriptor that a row of the store has as *text*; *name* is for errors."""
    return descriptors.decode(text.encode(), source=name)


_KEPT_CGROUPS = 1024


def cgroup_name(uuid: str) -> str:
    """Return the name of an instance's cgroup below the node's."""
    return f"i-{uuid}"


# An operation waits for the one before it on the same instance: stop's grace, and a margin.
_LOCK_TIMEOUT_S = 3700.0
INIT_TIMEOUT_S = 40.0
_KEPT_INITS = 256


class Context:
    """One node on this machine, opened by one process. What is costly is made when asked for."""

    def __init__(
        self,
        root: Path | None,
        *,
        here: bool,
        os: Os | None = None,
        network: Callable[[Identity], NetworkManager] | None = None,
        claims: Claims | None = None,
    ) -> None:
        self.paths = Paths(root)
        self.paths.create()
        self.claims = claims or Claims()
        self.identity = open_identity(self.paths, self.claims)
        self.store = Store(self.paths)
        self._here = here or environ.get("NATIVERT_HERE") == "1"
        self._os = os
        self._make_network = network
        self._network: NetworkManager | None = None
        self._mutex = threading.Lock()
        # An instance's own is used under its lock only.
        self._inits: dict[str, Channel] = {}
        self._cgroups: dict[str, Cgroup] = {}

    @property
    def name(self) -> str:
        """The node's name, as ps shows it."""
        return self.identity.name

    @functools.cached_property
    def place(self) -> scope.Place:
        """Where the cgroups of this node are, and why."""
        return scope.choose(f"nativert-{self.identity.tag}")

    @functools.cached_property
    def driver(self) -> Driver:
        """The cgroups of this node; UnenforceableError where none are mounted."""
        return cgroups.detect(self.place.parent)

    def cgroup(self, uuid: str) -> Cgroup:
        """Return the cgroup of an instance, whether or not it exists."""
        found = self._cgroups.get(uuid)
        if found is None:
            if len(self._cgroups) >= _KEPT_CGROUPS:
                self._cgroups.clear()
            found = self._cgroups[uuid] = self.driver.open(cgroup_name(uuid))
        return found

    @functools.cached_property
    def os(self) -> Os:
        """Files and downloads."""
        if self._os is not None:
            return self._os
        from nativert.runtime.local_os import LocalOs

        return LocalOs()

    @property
    def network(self) -> NetworkManager:
        """Links, addresses and ports."""
        # One for all threads: it has a thread and sockets of its own, which close must find.
        with self._mutex:
            if self._network is None:
                if self._make_network is not None:
                    self._network = self._make_network(self.identity)
                else:
                    from nativert.runtime.network import BridgeNetwork

                    subnet = str(self.identity.subnet)
                    self._network = BridgeNetwork(self.identity.tag, subnet, self.paths.run / "net")
            return self._network

    @functools.cached_property
    def images(self) -> Images:
        """Fetching and unpacking."""
        from nativert.runtime.image import Images

        return Images(self.paths.lib / "images", self.os)

    @functools.cached_property
    def launcher(self) -> LauncherClient:
        """The node's launcher; connecting starts it, and makes the node's cgroups for it."""
        entry = self.driver.open(LAUNCHER).entry()
        # On v2 the starter's own cgroup is left by a plain write too: one `0` to cgroup.procs.
        tasks = [*entry.tasks, *([f"{entry.into}/cgroup.procs"] if entry.into else [])]
        init = self.driver.open(INIT).entry()
        return LauncherClient(
            self.paths.run,
            tasks=tasks,
            init_cgroup=init.into,
            init_tasks=() if init.into else init.tasks,
            here=self._here,
            place=lambda pid: scope.settle(self.place, pid, self.driver.prepare),
        )

    def init(self, uuid: str, *, timeout_s: float = INIT_TIMEOUT_S) -> Channel:
        """Connect to the init of an instance; OSError if it is not there."""
        return Channel(self.paths.instance_run(uuid), INIT_SOCKET, timeout_s=timeout_s)

    @contextmanager
    def kept_init(self, uuid: str, *, timeout_s: float = INIT_TIMEOUT_S) -> Iterator[Channel]:
        """Use a connection to the init of an instance that is kept for the next time.

        Connecting and greeting take longer than many a verb. It is closed when the block
        raises; a block that leaves something to be read closes it itself.
        """
        channel = self._inits.pop(uuid, None)
        if channel is not None and not channel.quiet():
            channel.close()
            channel = None
        if channel is None:
            channel = self.init(uuid, timeout_s=timeout_s)
        channel.sock.settimeout(timeout_s)
        try:
            yield channel
        except BaseException:
            channel.close()
            raise
        if len(self._inits) < _KEPT_INITS and channel.quiet():
            self._inits[uuid] = channel
        else:
            channel.close()

    def kept_channel(self, uuid: str, *, connect: bool = False) -> Channel | None:
        """Return the kept connection to the init of an instance, to look at it.

        Where none is kept, one is made to *connect*; None if its init is not there.
        """
        channel = self._inits.get(uuid)
        if channel is None and connect and len(self._inits) < _KEPT_INITS:
            try:
                channel = self._inits[uuid] = self.init(uuid)
            except OSError:
                return None
        return channel

    @functools.cached_property
    def seccomp(self) -> Path:
        """The compiled filter, made once for each version of the profile."""
        from nativert.isolation.seccomp import cached

        return cached(self.paths.run)

    def lock(self, uuid: str) -> InstanceLock:
        """The lock that serialises the operations on one instance."""
        return InstanceLock(self.paths, uuid, timeout_s=_LOCK_TIMEOUT_S)

    def host_lock(self, *, shared: bool) -> NodeLock:
        """Shared by those who use what the node has on the host, held alone to remove it."""
        return NodeLock(self.paths, "host", timeout_s=_LOCK_TIMEOUT_S, shared=shared)

    def more_blocks(self) -> tuple[int, ...]:
        """Claim another block of id ranges; NativertError(IDS_EXHAUSTED)."""
        self.identity = claim_block(self.paths, self.claims, self.identity)
        return self.identity.blocks

    def link_name(self, number: int) -> str:
        """The host-side name of a veth; IFNAMSIZ leaves 7 digits for the number."""
        if number > 9_999_999:
            raise NativertError(f"no link name left: {number}", code=Code.NETWORK)
        return f"nv{self.identity.tag}{number}"

    def launcher_leaves(self) -> bool:
        """Ask the launcher to end, if it is there; False while it has instances."""
        client: LauncherClient | None = self.__dict__.pop("launcher", None)
        if client is None:
            client = LauncherClient(
                self.paths.run, tasks=(), init_cgroup=None, init_tasks=(), here=self._here
            )
        return client.leave()

    def close(self) -> None:
        """Finish what goes on in the background and release what is held."""
        if self._network is not None:
            self._network.close()
        if "launcher" in self.__dict__:
            self.launcher.close()
        while self._inits:
            self._inits.popitem()[1].close()
        self.store.close()
