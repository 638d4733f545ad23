"""What everybody above the runtime uses of a node, whoever holds it.

`runtime.Node` is the node in this process; the agent's client is the same one reached through
the API. Both satisfy `Facade`, so that a command answers alike with an agent and without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from nativert.fdu.descriptor import Descriptor
from nativert.runtime.protocols import Progress
from nativert.runtime.views import (
    Check,
    Entry,
    Event,
    Figures,
    Instance,
    Leftover,
    LogLine,
)


class Session(Protocol):
    """A program that `Facade.exec` has started."""

    @property
    def master(self) -> int | None:
        """The terminal's own side, where the program has one; closed by `close`."""
        ...

    def wait(self) -> int:
        """Wait for its end; return its exit code, 128+n on signal n."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""
        ...

    def close(self) -> None:
        """Give the session up: what still runs of it is killed."""
        ...


class Facade(Protocol):
    """One node. References are UUIDs, unique prefixes of one, or names; errors NativertError."""

    def close(self) -> None:
        """Give the node back; instances go on."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def define(self, descriptor: Descriptor, *, name: str | None = None) -> Instance:
        """Enter an instance of *descriptor*."""
        ...

    def redefine(self, ref: str, descriptor: Descriptor) -> Instance:
        """Have *descriptor* in the place of a DEFINED instance's own; its /data and log stay."""
        ...

    def configure(self, ref: str, *, progress: Progress | None = None) -> Instance:
        """Fetch the image; make cgroups, namespaces, root file system, network."""
        ...

    def clean(self, ref: str) -> Instance:
        """Remove all that configure made."""
        ...

    def run(self, ref: str, *, env: Mapping[str, str] | None = None) -> Instance:
        """Start the application; *env* is added to the descriptor's."""
        ...

    def stop(self, ref: str) -> Instance:
        """Send the stop signal, wait for the grace, kill what is left."""
        ...

    def restart(self, ref: str) -> Instance:
        """Stop and start, with the environment of the last start."""
        ...

    def pause(self, ref: str) -> Instance:
        """Freeze the application."""
        ...

    def resume(self, ref: str) -> Instance:
        """Thaw the application."""
        ...

    def scale(self, ref: str, change: Mapping[str, object], *, force: bool = False) -> Instance:
        """Change limits of the running application; keys are the fields of `Limits`."""
        ...

    def migrate(self, ref: str, peer: str) -> dict[str, Any]:
        """Move the running instance to the node *peer*; return what that says of it."""
        ...

    def undefine(self, ref: str) -> None:
        """Forget the instance: nothing of it is left."""
        ...

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Take the edges down to UNDEFINED; with *force* a running application is killed."""
        ...

    def kill(self, ref: str, number: int) -> None:
        """Send a signal to the application's first process."""
        ...

    def wait(self, ref: str, *, timeout_s: float | None = None) -> Instance:
        """Wait until the application has ended; NativertError(TIMEOUT)."""
        ...

    def exec(
        self,
        ref: str,
        argv: Sequence[str],
        *,
        stdio: tuple[int, int, int],
        tty: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Session:
        """Start a program beside the application, in its namespaces, cgroup and privileges."""
        ...

    def logs(self, ref: str, *, follow: bool = False, tail: int | None = None) -> Iterator[LogLine]:
        """Yield the log of the instance's runs; with *follow* until the application ends."""
        ...

    def ls(self, ref: str, path: str = "") -> Iterator[Entry]:
        """Yield what a directory below /data holds, in its own order; of a file the file."""
        ...

    def read_file(self, ref: str, path: str) -> Iterator[bytes]:
        """Yield a regular file below /data in pieces."""
        ...

    def write_file(
        self, ref: str, path: str, pieces: Iterable[bytes], *, mode: int = 0o644
    ) -> Entry:
        """Put a file below /data in place at once, the application's own; all or nothing."""
        ...

    def get(self, ref: str) -> Instance:
        """Return one instance."""
        ...

    def stats(self, refs: Sequence[str] | None = None) -> list[Figures]:
        """Return the figures of the given instances, or of all that run."""
        ...

    def inspect(self, ref: str) -> dict[str, object]:
        """Return the fog05 record with the true status, and a ``native`` object beside it."""
        ...

    def events(self, after: int = 0, *, limit: int = 1000) -> Sequence[Event]:
        """Return at most *limit* events with numbers above *after*, oldest first."""
        ...

    def wait_events(self, after: int, timeout_s: float, *, limit: int = 1000) -> Sequence[Event]:
        """Return events above *after*, as soon as there are some; none after *timeout_s*."""
        ...

    def latest_event(self) -> int:
        """Return the number of the newest event: from here on, only new ones come."""
        ...

    def gc(self, *, dry_run: bool = False) -> list[Leftover]:
        """Remove what carries this node's tag and belongs to no instance."""
        ...

    def doctor(self) -> list[Check]:
        """Return what this host can and cannot enforce, with the fix for each."""
        ...

    # Last, since the name hides the type in the rest of the class.

    def list(self) -> list[Instance]:
        """Return every instance, in the order of definition."""
        ...
