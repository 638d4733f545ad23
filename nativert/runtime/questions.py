"""The questions to one node: what is, what was, and what an application has written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nativert.fdu.states import WITH_APPLICATION
from nativert.runtime import edges
from nativert.runtime.context import Context
from nativert.runtime.observe import Observed
from nativert.runtime.protocols import Supervision
from nativert.runtime.sight import Sight
from nativert.runtime.stats import Monitor
from nativert.runtime.supervision import acts
from nativert.runtime.views import (
    Check,
    Entry,
    Event,
    Figures,
    Instance,
    Leftover,
    LogLine,
)
from nativert.store.durable import Row
from nativert.store.identity import Identity
from nativert.store.paths import Paths


class Questions:
    """The half of a node that changes nothing."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._monitor = Monitor(context)
        self._sight = Sight(context)
        self._supervision: Supervision | None = None

    @property
    def context(self) -> Context:
        """What the parts of the runtime share."""
        return self._context

    def attend(self, supervision: Supervision | None) -> None:
        """Have somebody there from now on, or nobody any more."""
        self._supervision = supervision

    @property
    def attended(self) -> bool:
        """Whether somebody is there who restarts, checks and orders instances."""
        return self._supervision is not None

    def look(self, uuid: str) -> Observed:
        """Look at one instance by its whole UUID; note what has happened."""
        return self._sight.look(self._context.store.get(uuid))

    @property
    def identity(self) -> Identity:
        """Who this node is on its host."""
        return self._context.identity

    @property
    def paths(self) -> Paths:
        """Where this node keeps its things."""
        return self._context.paths

    def get(self, ref: str) -> Instance:
        """Return one instance."""
        return self._monitor.row(self._sight.look(self._context.store.find(ref)))

    def stats(self, refs: Sequence[str] | None = None) -> list[Figures]:
        """Return the figures of the given instances, or of all that run."""
        store = self._context.store
        if refs:
            return [self._monitor.figures(self._sight.look(store.find(ref))) for ref in refs]
        return [
            self._monitor.figures(seen)
            for seen in self._sight.looks()
            if seen.state in WITH_APPLICATION
        ]

    def inspect(self, ref: str) -> dict[str, object]:
        """Return the fog05 record with the true status, and a ``native`` object beside it."""
        from nativert.runtime import inspect as inspecting

        seen = self._sight.look(self._context.store.find(ref))
        return inspecting.inspect(
            self._context,
            seen,
            self._monitor.row(seen),
            self._monitor.figures(seen),
            self._supervision,
        )

    def events(self, after: int = 0, *, limit: int = 1000) -> Sequence[Event]:
        """Return at most *limit* events with numbers above *after*, oldest first."""
        self._context.store.flush()
        return [edges.view(event) for event in self._context.store.events(after, limit=limit)]

    def wait_events(self, after: int, timeout_s: float, *, limit: int = 1000) -> Sequence[Event]:
        """Return events above *after*, as soon as there are some; none after *timeout_s*."""
        found = self._context.store.wait_events(after, timeout_s, limit=limit)
        return [edges.view(event) for event in found]

    def latest_event(self) -> int:
        """Return the number of the newest event: from here on, only new ones come."""
        self._context.store.flush()
        return self._context.store.latest_event()

    def gc(self, *, dry_run: bool = False) -> list[Leftover]:
        """Remove what carries this node's tag and belongs to no instance."""
        from nativert.runtime import gc

        return gc.collect(self._context, dry_run=dry_run)

    def doctor(self) -> list[Check]:
        """Return what this host can and cannot enforce, with the fix for each."""
        from nativert.runtime import doctor

        return doctor.examine(self._context)

    def logs(self, ref: str, *, follow: bool = False, tail: int | None = None) -> Iterator[LogLine]:
        """Yield the log of the instance's runs; with *follow* until the application ends."""
        from nativert.runtime import logs

        row = self._context.store.find(ref)
        directory = self._context.paths.instance_lib(row.uuid) / "log"
        if not follow or not directory.is_dir():
            return logs.read(directory, tail=tail)

        def running() -> bool:
            return acts.log_goes_on(self._context, row.uuid)

        return logs.follow(directory, tail=tail, running=running)

    def ls(self, ref: str, path: str = "") -> Iterator[Entry]:
        """Yield what a directory below /data holds, in its own order; of a file the file."""
        from nativert.runtime import data

        row = self._context.store.find(ref)
        with data.told(row.name, path):
            yield from data.entries(self._data(row), path)

    def read_file(self, ref: str, path: str) -> Iterator[bytes]:
        """Yield a regular file below /data in pieces."""
        from nativert.runtime import data

        row = self._context.store.find(ref)
        with data.told(row.name, path):
            yield from data.content(self._data(row), path)

    def read(self, ref: str, path: str, *, limit: int) -> bytes:
        """Return a file below /data of at most *limit* bytes."""
        from nativert.runtime import data

        row = self._context.store.find(ref)
        with data.told(row.name, path):
            return data.read(self._data(row), path, limit=limit)

    def _data(self, row: Row) -> Path:
        return self._context.paths.instance_lib(row.uuid) / "data"

    # Last, since the name hides the type in the rest of the class.

    def list(self) -> list[Instance]:
        """Return every instance, in the order of definition."""
        return [self._monitor.row(seen) for seen in self._sight.looks()]
