"""Turning IPv4 forwarding on for the time that some node needs it.

`net.ipv4.ip_forward` is one switch for the whole host. Who turned it on is kept in a file of
the node and, for the other nodes of this host, in the alias of the node's bridge: the last
node to leave turns it off again, and only if a node turned it on.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nativert.isolation.network import sysctl
from nativert.isolation.network.messages import Link

FORWARD: Final = "ipv4/ip_forward"
_ALIAS_OURS: Final = "nativert: turned ip_forward on"
_ALIAS: Final = "nativert"


class Forwarding:
    """What one node did to the switch; `path` is the file that remembers it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def claim(self, other_nodes: Iterable[Link]) -> str:
        """Remember, before `turn_on`, whether it is for us to turn off; return the alias."""
        ours = self.ours() or sysctl.read(FORWARD) == "0"
        if not ours:
            # A node that found it on because of another node inherits the duty.
            ours = any(link.alias == _ALIAS_OURS for link in other_nodes)
        if ours and not self.ours():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_name(f"{self._path.name}.{threading.get_native_id()}")
            partial.write_text(json.dumps({"boot_id": _boot_id(), FORWARD: "0"}))
            os.replace(partial, self._path)
        return _ALIAS_OURS if ours else _ALIAS

    def turn_on(self) -> None:
        """Turn forwarding on if it is off."""
        sysctl.ensure(FORWARD, "1")

    def ours(self) -> bool:
        """Return whether a node turned it on in this boot."""
        try:
            kept = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return False
        return isinstance(kept, dict) and kept.get("boot_id") == _boot_id()

    def release(self, other_bridges: Iterable[Link], own: Link | None = None) -> None:
        """Turn it off if that is for us to do and no other bridge may rely on it.

        *own* is the node's bridge as it was: its alias tells what a lost file does not.
        """
        ours = self.ours() or (own is not None and own.alias == _ALIAS_OURS)
        # Whoever came later (Docker, libvirt) found it on and will not turn it on again.
        if ours and not list(other_bridges):
            sysctl.ensure(FORWARD, "0")
        self._path.unlink(missing_ok=True)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
