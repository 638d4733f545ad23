"""The overlay as the agent keeps it: tells where moved addresses are, hears it, and acts by it.

What a node says is a value at a path of its own, so that who comes later finds it. What it has
said stays true when its agent is gone: its instances go on.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from nativert.agent.fog05 import paths
from nativert.agent.logs import LOGGER
from nativert.agent.overlay import words
from nativert.agent.overlay.words import Word
from nativert.errors import DescriptorError, NativertError
from nativert.plugin.connector import Sample
from nativert.plugin.zenoh_connector import ZenohConnector, stamp_order
from nativert.runtime.context import descriptor_of
from nativert.runtime.network import BridgeNetwork
from nativert.runtime.overlay.plan import Plan
from nativert.store import boot
from nativert.store.paths import check_uuid

if TYPE_CHECKING:
    from nativert.agent.config import Overlay as Settings
    from nativert.runtime.context import Context

# Nothing tells of what others take away from the kernel.
_LOOK_S: Final = 5.0
_AGAIN_S: Final = 1.0
_SELDOM_S: Final = 60.0
# An address has come, or gone: RUNNING here, or nothing of it left here.
_MOVED: Final = ("RUN", "UNDEFINE")


class Joining:
    """Satisfies `Reporter`: made first, it joins this node with others from `start` to `close`."""

    def __init__(
        self, context: Context, connector: ZenohConnector, settings: Settings, address: str
    ) -> None:
        if not isinstance(context.network, BridgeNetwork):
            raise TypeError("another network than the built-in one has an overlay of its own")
        self._context = context
        self._network = context.network
        self._connector = connector
        self._settings = settings
        self._address = address
        self._id = context.identity.id
        self._mutex = threading.Lock()
        self._words: dict[str, Word] = {}
        self._stamps: dict[str, tuple[int, str]] = {}
        # Nodes that are there, and have not told since they came.
        self._silent: set[str] = set()
        self._said: Word | None = None
        self._kept: Plan | None = None
        self._trouble = ""
        self._acted = 0.0
        self._changed = threading.Event()
        self._stopped = False
        self._open = ExitStack()

    def make(self) -> None:
        """Have the node's own part in the kernel, and tell what is here."""
        before = self._network.overlay.plan()
        if before is not None:
            # Of an agent before this one: nodes that are away now may come back later.
            self._words = {
                peer.node: Word(
                    subnet=peer.subnet,
                    address=peer.address,
                    vni=before.vni,
                    port=before.port,
                    here=peer.here,
                )
                for peer in before.peers
            }
        self._look()

    def start(self) -> None:
        """Join with whoever is there or comes."""
        self._open.callback(self._connector.subscribe(paths.overlay_of("*"), self._heard).close)
        thread = threading.Thread(target=self._work, name="overlay", daemon=True)
        thread.start()
        self._open.callback(thread.join)
        self._open.callback(self._end)
        # Last: who is there already is asked what it has said before.
        self._open.callback(self._connector.watch(paths.alive("*"), self._seen).close)

    def close(self) -> None:
        """Tell and hear no more. Where instances are configured all stays as it is."""
        self._open.close()
        store, facts = self._context.store, self._context.paths
        lock = self._context.host_lock(shared=False)
        if not lock.try_acquire():
            return  # Somebody configures an instance.
        try:
            if not any(boot.read_facts(facts, row.uuid) for row in store.rows()):
                self._network.overlay.forget()
        finally:
            lock.release()

    def update_fdu_status(self, fdu: str, instance: str, status: str) -> None:  # noqa: ARG002
        """Look whether an address has come or gone."""
        if status in _MOVED:
            self.wake()

    def wake(self) -> None:
        """Look at once whether an address has come or gone; in another thread."""
        self._changed.set()

    def write_fdu_error(self, fdu: str, instance: str, code: int, message: str) -> None:
        """Nothing has moved."""

    def _end(self) -> None:
        self._stopped = True
        self._changed.set()

    # -- what others say ---------------------------------------------------------------

    def _heard(self, sample: Sample) -> None:
        node = paths.node_of_overlay(sample.path)
        if node == self._id or sample.value is None:
            return
        try:
            check_uuid(node)
            word = words.decode(sample.value)
        except (NativertError, DescriptorError) as e:
            LOGGER.warning("node %s: %s", node, e)
            return
        stamp = stamp_order(sample.stamp)
        with self._mutex:
            self._silent.discard(node)
            # What was asked for may come after what was told later.
            if stamp < self._stamps.get(node, (0, "")):
                return
            self._stamps[node] = stamp
            known = self._words.get(node)
            self._words[node] = word
        if known != word:
            self._changed.set()

    def _seen(self, path: str, here: bool) -> None:
        node = path.rpartition("/")[2]
        if node == self._id:
            return
        with self._mutex:
            if not here:
                self._silent.discard(node)
                return
            self._silent.add(node)
        # Not here: who comes next must not wait for its answer.
        threading.Thread(target=self._ask, args=(node,), name="overlay", daemon=True).start()

    def _ask(self, node: str) -> None:
        """Ask a node until it tells, is gone, or this one ends."""
        told, pause_s = "", _AGAIN_S
        while node in self._silent and not self._stopped:
            try:
                for sample in self._connector.get(paths.overlay_of(node)):
                    self._heard(sample)
            except NativertError as e:
                if str(e) != told:
                    LOGGER.warning("node %s: cannot ask for its part in the overlay: %s", node, e)
                told = str(e)
            # One that has no part in an overlay tells never.
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _SELDOM_S)

    # -- what follows ------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopped:
            self._changed.wait(_LOOK_S)
            self._changed.clear()
            if not self._stopped:
                self._look()

    def _look(self) -> None:
        trouble = ""
        try:
            self._tell()
            self._act()
        except (NativertError, OSError) as e:
            trouble = str(e)
            if trouble != self._trouble:
                LOGGER.error("the overlay is not as it should be: %s", e)
            if not self._network.overlay.present():
                # No instance's network may fail for it.
                self._kept = None
                with suppress(OSError):
                    self._network.overlay.forget()
        self._trouble = trouble

    def _tell(self) -> None:
        word = Word(
            subnet=str(self._context.identity.subnet),
            address=self._address,
            vni=self._settings.vni,
            port=self._settings.port,
            here=self._here(),
        )
        if word != self._said:
            self._connector.put(paths.overlay_of(self._id), words.encode(word))
            self._said = word

    def _here(self) -> dict[str, int]:
        store, here = self._context.store, {}
        for address, interface, instance, epoch in store.travelled():
            try:
                row = store.get(instance)
                networks = descriptor_of(row.descriptor, row.name).networks
            except NativertError:
                continue  # Undefined meanwhile, or damaged.
            # A virtual network of fog05 is on one node, and may be another one there.
            if interface not in networks:
                here[address] = epoch
        return here

    def _act(self) -> None:
        assert self._said is not None  # It has just been told.
        with self._mutex:
            others = dict(self._words)
        plan = words.planned(self._id, self._said, others)
        before, overlay = self._kept, self._network.overlay
        now = time.monotonic()
        # Where instances come and go by the hundred, most have not moved.
        if plan == before and now - self._acted < _LOOK_S:
            return
        self._acted = now
        if plan != before or overlay.plan() is None:
            overlay.keep(plan)
        # What the node has on the host is not removed meanwhile.
        with self._context.host_lock(shared=True):
            self._network.prepare()
        self._kept = plan
        for node, why in plan.refused.items():
            if before is None or before.refused.get(node) != why:
                LOGGER.error("node %s is not joined with the overlay: %s", node, why)
