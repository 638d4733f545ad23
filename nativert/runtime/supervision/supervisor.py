"""The supervisor: one thread that hears of ends, and a few that act on them through the node.

It sleeps until an init tells an end, a start or a check is due, or another process has
written an event. At its start it adopts what runs by evidence and restarts nothing of it.
Whatever it knows besides is in the durable records: it may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from nativert.errors import NativertError
from nativert.runtime import edges
from nativert.runtime.pool import Pool
from nativert.runtime.supervision import acts
from nativert.runtime.supervision.checking import Checking
from nativert.runtime.supervision.look import Looks
from nativert.runtime.supervision.reconcile import Reconciler
from nativert.runtime.supervision.starts import Starts
from nativert.runtime.supervision.watched import Watched

if TYPE_CHECKING:
    from nativert.runtime.node import Node

RECONCILE_S: Final = 5.0
_LOOK_S: Final = 1.0
_AGAIN_S: Final = 1.0
# Looks are short. What fetches, starts, or waits for a grace has threads of its own, and is
# not waited for at the end: the next look settles what stands half-way.
_LOOKERS: Final = 8
_ACTORS: Final = 32
_PROBES: Final = 8
_SETTLING_S: Final = 10.0


class Supervisor:
    """Restarts, checks, orders and repairs the instances of one node, or *only* some of them.

    *now* gives seconds since the epoch.
    """

    def __init__(
        self,
        node: Node,
        *,
        only: set[str] | None = None,
        reconcile_s: float = RECONCILE_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.node = node
        self._only = only
        self._watched: dict[str, Watched] = {}
        self._by_fd: dict[int, str] = {}
        self._mutex = threading.Lock()
        self._poll = select.poll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.POLLIN)
        self._closing = threading.Event()
        self._lookers = Pool("supervise", _LOOKERS)
        self._actors = Pool("act", _ACTORS)
        self._probes = Pool("probe", _PROBES)
        self._looks = Looks(node, self, now)
        self._checking = Checking(node, self)
        self.starts = Starts(node, self)
        self._reconciler = Reconciler(node) if only is None else None
        self.reconcile_s = reconcile_s
        self._reconciling = False
        self._cursor = 0
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    # -- from outside ------------------------------------------------------------------

    def start(self) -> None:
        """Adopt what is there, tell what ended meanwhile, and begin to supervise."""
        _raise_descriptor_limit()
        self._cursor = self.node.latest_event()
        self.node.attend(self)
        for row in self.node.context.store.rows():
            if not row.corrupt and self._mine(row.uuid):
                self.changed(row.uuid)
        self._thread.start()
        if self._reconciler is not None:
            self._lookers.submit(partial(self._guarded, self._first_round))

    def alive(self) -> bool:
        """Tell whether its thread is at work."""
        return self._thread.is_alive()

    def ending(self) -> bool:
        """Tell whether it is closed, or about to be: nothing is started any more."""
        return self._closing.is_set()

    def changed(self, uuid: str) -> None:
        """Look at an instance soon; from any thread, never waits."""
        if self._closing.is_set() or not self._mine(uuid):
            return
        with self._mutex:
            watched = self._watched.setdefault(uuid, Watched(uuid))
            if watched.looking:
                watched.again = True
                return
            watched.looking = True
        try:
            self._lookers.submit(partial(self._guarded, partial(self._look, watched)))
        except NativertError:
            # No thread now: the supervisor's own asks again.
            with self._mutex:
                watched.looking = False
            watched.next_look = time.monotonic() + _AGAIN_S

    def update_fdu_status(self, fdu: str, instance: str, status: str) -> None:
        """Hear of an operation, as a `Reporter`."""
        del fdu, status  # The look finds out.
        self.changed(instance)

    def write_fdu_error(self, fdu: str, instance: str, code: int, message: str) -> None:
        """Hear of a failed operation, as a `Reporter`."""
        del fdu, code, message
        self.changed(instance)

    def also(self, uuid: str) -> None:
        """Supervise this instance too, and look at it soon."""
        if self._only is not None:
            self._only.add(uuid)
        self.changed(uuid)

    def before_start(self, ref: str) -> None:
        """Start what *ref* depends on and wait for it; NativertError if that fails."""
        self.starts.prepare(ref)

    def stop_all(self, reason: str = "node shut down") -> None:
        """Stop every instance, dependents first; what is wanted of them stays wanted."""
        self.close()
        self.starts.stop_all(reason)

    def health(self, uuid: str) -> dict[str, object] | None:
        """Return what the checks of an instance say; None where it has none."""
        watched = self._watched.get(uuid)
        if watched is None or watched.checks is None:
            return None
        checks = watched.checks
        word = {None: "starting", True: "healthy", False: "unhealthy"}[checks.healthy]
        return {"status": word, "failures": checks.failures, "last": checks.last}

    def healthy(self, uuid: str) -> bool:
        """Tell whether a running instance is healthy, or has no check."""
        watched = self._watched.get(uuid)
        if watched is None or watched.running_since is None:
            return False
        return watched.checks is None or bool(watched.checks.healthy)

    def close(self) -> None:
        """End; instances go on. Safe to call again."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._notify()
        if self._thread.ident is not None:
            self._thread.join()
        deadline = time.monotonic() + _SETTLING_S
        pools = (self._lookers, self._actors, self._probes)
        over = [pool.close(max(0.0, deadline - time.monotonic())) for pool in pools]
        self.node.attend(None)
        for watched in self._watched.values():
            watched.close()
        if all(over):
            # Else who is still at work would write to what has this number by then.
            os.close(self._wake)

    # -- the thread --------------------------------------------------------------------

    def _run(self) -> None:
        self._look_at = time.monotonic()
        self._reconcile_at = self._look_at + self.reconcile_s
        while not self._closing.is_set():
            try:
                self._turn()
            except NativertError as e:
                # No thread can be made, say: it must not end with that.
                self._told(e)
                self._closing.wait(_AGAIN_S)

    def _turn(self) -> None:
        now = time.monotonic()
        due = min(self._due(now), self._look_at)
        for fd, _ in self._poll.poll(max(0, int((due - now) * 1000) + 1)):
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            else:
                self._heard(fd)
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._look_around()
        if self._reconciler is not None and now >= self._reconcile_at and not self._reconciling:
            self._reconcile_at = now + self.reconcile_s
            self._reconciling = True
            try:
                self._lookers.submit(partial(self._guarded, self._reconcile))
            except NativertError:
                self._reconciling = False
                raise

    def _due(self, now: float) -> float:
        """Begin what is due; return when the next one is."""
        soonest = now + _LOOK_S
        with self._mutex:
            every = list(self._watched.values())
        for watched in every:
            if watched.next_look is not None:
                if watched.next_look <= now:
                    watched.next_look = None
                    self.changed(watched.uuid)
                else:
                    soonest = min(soonest, watched.next_look)
            checks = watched.checks
            if checks is not None and not watched.probing and watched.running_since is not None:
                if checks.due <= now:
                    # One at a time, and the next is due only after its end: none pile up.
                    watched.probing = True
                    try:
                        self._probes.submit(partial(self._guarded, partial(self._probe, watched)))
                    except NativertError:
                        watched.probing = False
                        raise
                else:
                    soonest = min(soonest, checks.due)
        return soonest

    def _heard(self, fd: int) -> None:
        with self._mutex:
            uuid = self._by_fd.get(fd)
            watched = None if uuid is None else self._watched.get(uuid)
            follow = None if watched is None else watched.follow
        if uuid is None or follow is None or follow.fileno() != fd:
            self._forget_fd(fd)
            return
        try:
            ended = follow.receive()
        except (OSError, EOFError, ValueError):
            self._forget_fd(fd)
            follow.close()
            ended = True
        if ended:
            self.changed(uuid)

    def _look_around(self) -> None:
        try:
            store = self.node.context.store
            latest = store.latest_event()
            if latest == self._cursor:
                return
            touched = set()
            while found := store.events(self._cursor):
                self._cursor = found[-1].seq
                touched |= {event.instance for event in found if event.instance}
        except NativertError:
            return  # The store is busy or full: the next second asks again.
        for uuid in touched:
            self.changed(uuid)

    # -- what the workers do -----------------------------------------------------------

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except (NativertError, OSError) as e:
            self._told(e)

    def _told(self, error: Exception) -> None:
        if not self._closing.is_set():
            data = edges.encode({"message": str(error)})
            self.node.context.store.note("", "supervision-failed", data)

    def _look(self, watched: Watched) -> None:
        failed = True
        try:
            self._looks.look(watched)
            failed = False
        finally:
            with self._mutex:
                watched.looking, again, watched.again = False, watched.again, False
            if failed:
                # Such as a store that takes nothing: asked again, but not at once.
                watched.next_look = time.monotonic() + _AGAIN_S
            elif again:
                self.changed(watched.uuid)
            self._notify()

    def act(self, watched: Watched, body: Callable[[Watched], None]) -> None:
        """Have a thread do *body*, which may take long; one at a time for an instance."""
        with self._mutex:
            if watched.acting:
                return
            watched.acting = True
        try:
            self.soon(partial(self._act, watched, body))
        except NativertError:
            watched.acting = False
            raise

    def _act(self, watched: Watched, body: Callable[[Watched], None]) -> None:
        try:
            body(watched)
        except BaseException:
            # What it has done could not be noted, nor that it has failed.
            watched.put_off()
            raise
        finally:
            watched.acting = False
            self.changed(watched.uuid)

    def _probe(self, watched: Watched) -> None:
        try:
            self._checking.check(watched)
        finally:
            watched.probing = False
            self._notify()

    def soon(self, act: Callable[[], None]) -> None:
        """Have a thread do what may take long."""
        self._actors.submit(partial(self._guarded, act))

    def _first_round(self) -> None:
        acts.make_up(self.node)
        for leftover in self.node.gc():
            data = edges.encode({"what": leftover.kind, "name": leftover.name})
            kind = "leftover-removed" if leftover.removed else "leftover"
            self.node.context.store.note("", kind, data)

    def _reconcile(self) -> None:
        try:
            if self._reconciler is not None:
                self._reconciler.round()
        finally:
            self._reconciling = False

    # -- for the looks -----------------------------------------------------------------

    def register(self, watched: Watched) -> None:
        """Poll the connection of an instance from now on."""
        if watched.follow is not None and (fd := watched.follow.fileno()) >= 0:
            with self._mutex:
                self._by_fd[fd] = watched.uuid
            self._poll.register(fd, select.POLLIN)
            self._notify()

    def forget(self, watched: Watched) -> None:
        """Stop watching an instance that is no more."""
        with self._mutex:
            self._watched.pop(watched.uuid, None)
        self.unregister(watched)

    def unregister(self, watched: Watched) -> None:
        """Close the connection of an instance."""
        if watched.follow is not None:
            self._forget_fd(watched.follow.fileno())
            watched.close()

    def _forget_fd(self, fd: int) -> None:
        with self._mutex:
            self._by_fd.pop(fd, None)
        with contextlib.suppress(KeyError, ValueError):
            self._poll.unregister(fd)

    def _mine(self, uuid: str) -> bool:
        return self._only is None or uuid in self._only

    def _notify(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)


def _raise_descriptor_limit() -> None:
    # Two for each instance; select(2), which could not have as many, is not used.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
