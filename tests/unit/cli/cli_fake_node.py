"""A node that keeps its instances in memory and runs `exec` on this host."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Self

import msgspec

from nativert.errors import Code, NativertError, TransitionError, UnknownInstanceError
from nativert.runtime.views import Check, End, Entry, Event, Figures, Instance, Leftover, LogLine

UUIDS = [f"{n:08x}-1111-4111-8111-111111111111" for n in range(1, 10)]


class FakeNode:
    """One object is the whole node; opened as often as wanted, by any thread."""

    def __init__(self) -> None:
        self.rows: dict[str, Instance] = {}
        self.calls: list[tuple[object, ...]] = []
        self.opened: list[tuple[object, bool]] = []
        self.fail: dict[str, BaseException] = {}
        self.ended = threading.Event()
        self.end = End(reason="exited", message="exited with 0", exit_code=0)
        self.lines: list[LogLine] = []
        self.checks: list[Check] = []
        self.leftovers: list[Leftover] = []
        self.files: dict[str, bytes] = {}
        self.happened: list[Event] = []
        self.broken_after: int | None = None
        self.on_wait: Callable[[], None] = lambda: None
        self.on_stop: Callable[[], None] = lambda: None

    def open(self, *, root: object, here: bool, new: bool) -> FakeNode:
        del new
        self.opened.append((root, here))
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, name: str, state: str, **figures: object) -> Instance:
        uuid = UUIDS[len(self.rows)]
        row = Instance(instance=uuid, fdu="fdu", name=name, state=state, node="n", **figures)
        self.rows[uuid] = row
        return row

    def _find(self, ref: str) -> Instance:
        for row in self.rows.values():
            if ref == row.name or row.instance.startswith(ref):
                return row
        raise UnknownInstanceError(ref)

    def _go(self, verb: str, ref: str, state: str, sources: tuple[str, ...]) -> Instance:
        row = self._find(ref)
        self.calls.append((verb, row.name))
        if verb in self.fail:
            raise self.fail[verb]
        if row.state not in sources:
            raise TransitionError(verb, row.state, ("something",))
        self.rows[row.instance] = msgspec.structs.replace(row, state=state)
        return self.rows[row.instance]

    def define(self, descriptor: SimpleNamespace, *, name: str | None = None) -> Instance:
        self.calls.append(("define", name or descriptor.name))
        if "define" in self.fail:
            raise self.fail["define"]
        return self.add(name or descriptor.name, "DEFINED")

    def configure(
        self, ref: str, *, progress: Callable[[int, int | None], None] | None = None
    ) -> Instance:
        if progress is not None:
            progress(1 << 20, 4 << 20)
        return self._go("configure", ref, "CONFIGURED", ("DEFINED",))

    def clean(self, ref: str) -> Instance:
        return self._go("clean", ref, "DEFINED", ("CONFIGURED",))

    def run(self, ref: str, *, env: dict[str, str] | None = None) -> Instance:
        self.calls.append(("env", env))
        return self._go("run", ref, "RUNNING", ("CONFIGURED",))

    def restart(self, ref: str) -> Instance:
        return self._go("restart", ref, "RUNNING", ("RUNNING",))

    def pause(self, ref: str) -> Instance:
        return self._go("pause", ref, "PAUSED", ("RUNNING",))

    def resume(self, ref: str) -> Instance:
        return self._go("resume", ref, "RUNNING", ("PAUSED",))

    def stop(self, ref: str) -> Instance:
        row = self._go("stop", ref, "RUNNING", ("RUNNING",))
        self.on_stop()
        self.finish(End(reason="stopped", message="stopped", signal="SIGTERM"))
        return row

    def finish(self, end: End) -> None:
        if not self.ended.is_set():
            self.end = end
            self.ended.set()

    def kill(self, ref: str, signal: int) -> None:
        self.calls.append(("kill", self._find(ref).name, int(signal)))
        if "kill" in self.fail:
            raise self.fail["kill"]
        if signal == 9:
            self.finish(End(reason="signal", message="killed by SIGKILL", signal="SIGKILL"))

    def events(self, after: int = 0, *, limit: int = 1000) -> list[Event]:
        return [event for event in self.happened if event.seq > after][:limit]

    def undefine(self, ref: str) -> None:
        del self.rows[self._go("undefine", ref, "UNDEFINED", ("DEFINED",)).instance]

    def remove(self, ref: str, *, force: bool = False) -> None:
        row = self._find(ref)
        self.calls.append(("remove", row.name, force))
        if "remove" in self.fail:
            raise self.fail["remove"]
        del self.rows[row.instance]

    def scale(self, ref: str, change: dict[str, object], *, force: bool = False) -> Instance:
        self.calls.append(("scale", change, force))
        return self._find(ref)

    def wait(self, ref: str, *, timeout_s: float | None = None) -> Instance:
        row = self._find(ref)
        self.on_wait()
        if not self.ended.wait(timeout_s if timeout_s is not None else 30):
            raise NativertError(f"{row.name}: still running", code=Code.TIMEOUT)
        if "wait" in self.fail:
            raise self.fail["wait"]
        return msgspec.structs.replace(row, state="CONFIGURED", end=self.end)

    def logs(self, ref: str, *, follow: bool = False, tail: int | None = None) -> Iterator[LogLine]:
        self._find(ref)
        self.calls.append(("logs", follow, tail))
        yield from self.lines if tail is None else self.lines[len(self.lines) - tail :]
        if follow:
            self.ended.wait(30)

    def ls(self, ref: str, path: str = "") -> Iterator[Entry]:
        self._find(ref)
        self.calls.append(("ls", path))
        for name, content in self.files.items():
            yield self._entry(name, content, 0o644)

    def read_file(self, ref: str, path: str) -> Iterator[bytes]:
        self._find(ref)
        if path not in self.files:
            raise NativertError(f"{ref}: {path}: no such file", code=Code.NOT_FOUND)
        for at, byte in enumerate(self.files[path]):
            if at == self.broken_after:
                raise NativertError("the agent went away", code=Code.NO_AGENT)
            yield bytes([byte])

    def write_file(
        self, ref: str, path: str, pieces: Iterable[bytes], *, mode: int = 0o644
    ) -> Entry:
        self._find(ref)
        self.calls.append(("put", path, oct(mode)))
        self.files[path] = b"".join(pieces)
        return self._entry(path, self.files[path], mode)

    @staticmethod
    def _entry(name: str, content: bytes, mode: int) -> Entry:
        kind = "directory" if name.endswith("/") else "file"
        return Entry(
            name=name.rstrip("/"),
            kind=kind,  # type: ignore[arg-type]
            size_bytes=len(content),
            mode=f"{mode:04o}",
            modified_at=0.0,
        )

    def stats(self, refs: list[str] | None = None) -> list[Figures]:
        rows = [self._find(ref) for ref in refs] if refs else list(self.rows.values())
        return [
            Figures(instance=r.instance, name=r.name, state=r.state, memory_bytes=2048, pids=3)
            for r in rows
        ]

    def list(self) -> list[Instance]:
        return [*self.rows.values()]

    def get(self, ref: str) -> Instance:
        return self._find(ref)

    def inspect(self, ref: str) -> dict[str, object]:
        return {"uuid": self._find(ref).instance, "native": {}}

    def gc(self, *, dry_run: bool = False) -> list[Leftover]:
        return [msgspec.structs.replace(item, removed=not dry_run) for item in self.leftovers]

    def doctor(self) -> list[Check]:
        return self.checks

    def exec(
        self,
        ref: str,
        argv: tuple[str, ...],
        *,
        stdio: tuple[int, int, int],
        tty: bool = False,
        env: dict[str, str] | None = None,
    ) -> FakeSession:
        self._find(ref)
        self.calls.append(("exec", argv, tty, env))
        if "exec" in self.fail:
            raise self.fail["exec"]
        return FakeSession(argv, stdio, tty, env or {})


class FakeSession:
    """A program of this host, on a pseudo-terminal if asked."""

    def __init__(
        self, argv: tuple[str, ...], stdio: tuple[int, int, int], tty: bool, env: dict[str, str]
    ) -> None:
        self.master: int | None = None
        if tty:
            self.master, slave = os.openpty()
            stdio = (slave, slave, slave)
        self._process = subprocess.Popen(
            argv,
            stdin=stdio[0],
            stdout=stdio[1],
            stderr=stdio[2],
            env={**os.environ, **env},
            start_new_session=True,
            # The slave becomes the controlling terminal, so that SIGWINCH and Ctrl-C arrive.
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if tty else None,
        )
        if tty:
            os.close(slave)

    def wait(self) -> int:
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        if self.master is not None:
            os.close(self.master)

    def resize(self, rows: int, columns: int) -> None:
        assert self.master is not None
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
